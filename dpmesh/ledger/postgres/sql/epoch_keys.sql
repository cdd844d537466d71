-- The keys of the epochs in force, one for each length of epochs, in microseconds. A key whose epoch is over is overwritten.
-- The server makes keys, so that no log of statements has them: 366 bits of its strong random source.

CREATE TABLE dpmesh.epochs (
    length bigint PRIMARY KEY CHECK (length > 0),
    number bigint NOT NULL CHECK (number >= 0),
    key    bytea  NOT NULL CHECK (octet_length(key) = 32)
) WITH (fillfactor = 10);
CREATE FUNCTION dpmesh.epoch_keys(budgets_ integer[], lengths_ bigint[]) RETURNS TABLE (number bigint, key bytea)
LANGUAGE plpgsql AS $$
DECLARE
    now_ numeric;
BEGIN
    IF (SELECT lost FROM dpmesh.ledger) THEN
        RAISE EXCEPTION 'the ledger has lost charges';
    END IF;
    -- The windows that were charged begin no later than the epochs that are paid for in them.
    SELECT greatest(dpmesh.now(), max(b.window_start)) INTO now_ FROM dpmesh.budgets b WHERE b.id = ANY (budgets_);
    IF NOT (now_ >= 0 AND now_ < 9007199254740992) THEN
        RAISE EXCEPTION 'the database shows no time';
    END IF;
    -- As store.epoch_in_force says. In order of length, so that holders wait for each other in one order.
    INSERT INTO dpmesh.epochs AS e
    SELECT w.length, floor(now_ * 1000000 / w.length),
        sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
    FROM unnest(lengths_) AS w (length)
    WHERE NOT EXISTS (
        SELECT FROM dpmesh.epochs o WHERE o.length = w.length
        AND o.number - floor(now_ * 1000000 / w.length) BETWEEN 0 AND 1
    )
    ORDER BY w.length
    ON CONFLICT (length) DO UPDATE SET number = excluded.number, key = excluded.key
    WHERE e.number - excluded.number NOT BETWEEN 0 AND 1;
    RETURN QUERY SELECT e.number, e.key FROM unnest(lengths_) WITH ORDINALITY AS w (length, place)
        JOIN dpmesh.epochs e USING (length) ORDER BY w.place;
END $$;
