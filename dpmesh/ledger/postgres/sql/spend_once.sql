-- Redeems names once.

CREATE FUNCTION dpmesh.spend_once(now_ bigint, names_ bytea[], untils_ bigint[]) RETURNS bytea[]
LANGUAGE plpgsql AS $$
DECLARE
    latest bigint;
    fresh bytea[];
BEGIN
    UPDATE dpmesh.clock SET now = now_ WHERE now < now_;
    -- Waits for who is just moving it on, and forgets names by it.
    SELECT now INTO latest FROM dpmesh.clock FOR SHARE;
    DELETE FROM dpmesh.spent WHERE name IN (
        SELECT name FROM dpmesh.spent WHERE until <= latest ORDER BY name LIMIT 10000 FOR UPDATE SKIP LOCKED
    );
    WITH added AS (
        INSERT INTO dpmesh.spent
        SELECT w.name, w.until FROM unnest(names_, untils_) AS w (name, until)
        WHERE w.until > latest ORDER BY w.name
        ON CONFLICT (name) DO NOTHING RETURNING name
    )
    SELECT array_agg(name) INTO fresh FROM added;
    RETURN coalesce(fresh, '{}');
END $$;
