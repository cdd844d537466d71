-- Debits a batch. The holder has decided on a state that may be out of date. If its windows are the ones in force, with
-- their caps, and everything fits, this one statement writes everything. If not, it writes nothing, and the holder asks
-- for the state to decide on anew.

CREATE FUNCTION dpmesh.debit(
    ids_ integer[], starts_ bigint[], in_force_ bigint[],
    budgets_ integer[], accounts_ bytea[], windows_ bigint[], amounts_ bigint[], caps_ bigint[],
    grants_ bigint[],
    chain_ bytea, seq_ bigint, before_ bytea, at_ bigint, body_ bytea, hash_ bytea
) RETURNS dpmesh.answer LANGUAGE plpgsql AS $$
DECLARE
    answer dpmesh.answer;
    written bigint;
BEGIN
    -- Asked first: who finds it accepted finds the windows that this moved, too.
    IF (SELECT lost FROM dpmesh.ledger) THEN
        answer.status := 'lost';
        RETURN answer;
    END IF;
    answer.status := 'stale';
    answer.now := dpmesh.now();
    IF NOT (answer.now >= 0 AND answer.now < 9007199254740992) THEN
        answer.status := 'clock';
        RETURN answer;
    END IF;
    IF (
        SELECT coalesce(bool_and(
            b.window_start = u.start AND b.cap = u.cap
            AND coalesce(answer.now < dpmesh.ends(b.window_start, b.length), true)
        ), true)
        FROM unnest(ids_, starts_, in_force_) AS u (id, start, cap) JOIN dpmesh.budgets b ON b.id = u.id
    ) THEN
        BEGIN
            WITH changed AS (
                INSERT INTO dpmesh.accounts AS a (budget, account, window_start, debited, cap, granted, lifetime)
                -- A grant is known only of an account that is there, so this is never written with one; but it is
                -- checked as if it were.
                SELECT w.budget, w.account, w.start, w.amount, w.cap, w.granted, w.amount
                FROM unnest(budgets_, accounts_, windows_, amounts_, caps_, grants_)
                    AS w (budget, account, start, amount, cap, granted)
                ORDER BY w.budget, w.account
                ON CONFLICT (budget, account) DO UPDATE SET
                    debited = excluded.debited
                        + CASE a.window_start WHEN excluded.window_start THEN a.debited ELSE 0 END,
                    granted = CASE a.window_start WHEN excluded.window_start THEN a.granted ELSE 0 END,
                    window_start = excluded.window_start,
                    cap = excluded.cap,
                    lifetime = CASE WHEN a.lifetime > 9223372036854775807 - excluded.debited
                        THEN 9223372036854775807 ELSE a.lifetime + excluded.debited END
                WHERE a.window_start < excluded.window_start
                    OR (a.window_start = excluded.window_start
                        AND excluded.debited <= excluded.cap - (a.debited - a.granted))
                RETURNING a.budget, a.account, a.debited, a.granted
            )
            SELECT count(*), array_agg(c.debited ORDER BY c.budget, c.account),
                   array_agg(c.granted ORDER BY c.budget, c.account)
            INTO written, answer.debited, answer.granted FROM changed c;
            IF written < cardinality(amounts_) THEN
                RAISE SQLSTATE 'DP001';
            END IF;
            IF NOT dpmesh.append(chain_, seq_, before_, at_, body_, hash_) THEN
                RAISE SQLSTATE 'DP002';
            END IF;
            answer.status := 'done';
            RETURN answer;
        EXCEPTION
            WHEN SQLSTATE 'DP001' OR check_violation THEN
                NULL;
            WHEN SQLSTATE 'DP002' THEN
                answer.status := 'chain';
                RETURN answer;
        END;
    END IF;
    RETURN answer;
END $$;
