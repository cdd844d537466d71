-- The state that a decision needs: the windows in force of all budgets, and what all holders debited of some accounts in
-- them, and grants. A window that any holder was told of stays in force until its end, whatever the clock shows later.

CREATE TYPE dpmesh.answer AS (
    status text, now double precision, starts bigint[], lengths bigint[], caps bigint[], debited bigint[],
    granted bigint[]
);
CREATE FUNCTION dpmesh.ends(start_ bigint, length_ bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    'SELECT (start_ / length_ + 1) * length_';
-- As store.window_in_force says: the holder's terms count for windows that begin, and lower the caps of the others.
CREATE FUNCTION dpmesh.state(
    ids_ integer[], lengths_ bigint[], epsilons_ double precision[], deltas_ double precision[], caps_ bigint[],
    budgets_ integer[], accounts_ bytea[]
) RETURNS dpmesh.answer LANGUAGE plpgsql AS $$
DECLARE
    answer dpmesh.answer;
    changes boolean;
BEGIN
    answer.status := 'stale';
    answer.now := dpmesh.now();
    IF NOT (answer.now >= 0 AND answer.now < 9007199254740992) THEN
        answer.status := 'clock';
        RETURN answer;
    END IF;
    SELECT bool_or(b.cap > u.cap OR coalesce(answer.now >= dpmesh.ends(b.window_start, b.length), false)) INTO changes
    FROM unnest(ids_, caps_) AS u (id, cap) JOIN dpmesh.budgets b ON b.id = u.id;
    IF changes THEN
        PERFORM FROM dpmesh.budgets b WHERE b.id = ANY (ids_) ORDER BY b.id FOR UPDATE;
        UPDATE dpmesh.budgets b SET
            window_start = greatest(
                dpmesh.ends(b.window_start, b.length), floor(answer.now)::bigint / u.length * u.length
            ),
            length = u.length, epsilon = u.epsilon, delta = u.delta, cap = u.cap
        FROM unnest(ids_, lengths_, epsilons_, deltas_, caps_) AS u (id, length, epsilon, delta, cap)
        WHERE b.id = u.id AND answer.now >= dpmesh.ends(b.window_start, b.length);
        UPDATE dpmesh.budgets b SET epsilon = u.epsilon, delta = u.delta, cap = u.cap
        FROM unnest(ids_, epsilons_, deltas_, caps_) AS u (id, epsilon, delta, cap)
        WHERE b.id = u.id AND b.cap > u.cap;
    END IF;
    -- Somebody may have changed them while this waited.
    SELECT array_agg(b.window_start ORDER BY u.place), array_agg(b.length ORDER BY u.place),
           array_agg(b.cap ORDER BY u.place)
    INTO answer.starts, answer.lengths, answer.caps
    FROM unnest(ids_) WITH ORDINALITY AS u (id, place) JOIN dpmesh.budgets b ON b.id = u.id;
    SELECT coalesce(array_agg(coalesce(a.debited, 0) ORDER BY w.place), '{}'),
           coalesce(array_agg(coalesce(a.granted, 0) ORDER BY w.place), '{}')
    INTO answer.debited, answer.granted
    FROM unnest(budgets_, accounts_) WITH ORDINALITY AS w (budget, account, place)
    LEFT JOIN dpmesh.accounts a ON a.budget = w.budget AND a.account = w.account
        AND a.window_start = answer.starts[array_position(ids_, w.budget)];
    RETURN answer;
END $$;
