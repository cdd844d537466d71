-- Credits what holders leased and did not use, all or nothing. Where a later window has begun, only the odometer is credited.

CREATE FUNCTION dpmesh.credit(
    budgets_ integer[], accounts_ bytea[], windows_ bigint[], amounts_ bigint[],
    chain_ bytea, seq_ bigint, before_ bytea, at_ bigint, body_ bytea, hash_ bytea
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    written bigint;
BEGIN
    PERFORM FROM dpmesh.accounts a JOIN unnest(budgets_, accounts_) AS w (budget, account) USING (budget, account)
    ORDER BY a.budget, a.account FOR UPDATE OF a;
    UPDATE dpmesh.accounts a SET
        debited = a.debited - CASE a.window_start WHEN w.start THEN w.amount ELSE 0 END,
        lifetime = a.lifetime - w.amount
    FROM unnest(budgets_, accounts_, windows_, amounts_) AS w (budget, account, start, amount)
    WHERE a.budget = w.budget AND a.account = w.account AND w.amount > 0 AND a.lifetime >= w.amount
        AND (a.window_start > w.start OR (a.window_start = w.start AND a.debited >= w.amount));
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written < cardinality(amounts_) THEN
        RAISE SQLSTATE 'DP001';
    END IF;
    IF NOT dpmesh.append(chain_, seq_, before_, at_, body_, hash_) THEN
        RAISE SQLSTATE 'DP002';
    END IF;
    RETURN 'done';
EXCEPTION
    WHEN SQLSTATE 'DP001' THEN
        RETURN 'stale';
    WHEN SQLSTATE 'DP002' THEN
        RETURN 'chain';
END $$;
