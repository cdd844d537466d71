-- The state that a decision needs, of all budgets and of some accounts: what all holders debited, and grants, in the
-- windows in force. A window that any holder was told of stays in force, whatever the clock shows later.

CREATE TYPE dpmesh.answer AS (status text, now double precision, starts bigint[], debited bigint[], granted bigint[]);
CREATE FUNCTION dpmesh.state(ids_ integer[], budgets_ integer[], accounts_ bytea[]) RETURNS dpmesh.answer
LANGUAGE plpgsql AS $$
DECLARE
    answer dpmesh.answer;
    begins boolean;
BEGIN
    answer.status := 'stale';
    answer.now := dpmesh.now();
    IF NOT (answer.now >= 0 AND answer.now < 9007199254740992) THEN
        answer.status := 'clock';
        RETURN answer;
    END IF;
    SELECT array_agg(w.start ORDER BY w.place), bool_or(w.start > w.latest) INTO answer.starts, begins FROM (
        SELECT u.place, b.window_start AS latest, dpmesh.in_force(answer.now, b.length, b.window_start) AS start
        FROM unnest(ids_) WITH ORDINALITY AS u (id, place) JOIN dpmesh.budgets b ON b.id = u.id
    ) AS w;
    IF begins THEN
        PERFORM FROM dpmesh.budgets b WHERE b.id = ANY (ids_) ORDER BY b.id FOR UPDATE;
        UPDATE dpmesh.budgets b SET window_start = u.start
        FROM unnest(ids_, answer.starts) AS u (id, start) WHERE b.id = u.id AND b.window_start < u.start;
        -- Somebody may have begun a later one while this waited.
        SELECT array_agg(b.window_start ORDER BY u.place) INTO answer.starts
        FROM unnest(ids_) WITH ORDINALITY AS u (id, place) JOIN dpmesh.budgets b ON b.id = u.id;
    END IF;
    SELECT coalesce(array_agg(coalesce(a.debited, 0) ORDER BY w.place), '{}'),
           coalesce(array_agg(coalesce(a.granted, 0) ORDER BY w.place), '{}')
    INTO answer.debited, answer.granted
    FROM unnest(budgets_, accounts_) WITH ORDINALITY AS w (budget, account, place)
    LEFT JOIN dpmesh.accounts a ON a.budget = w.budget AND a.account = w.account
        AND a.window_start = answer.starts[array_position(ids_, w.budget)];
    RETURN answer;
END $$;
