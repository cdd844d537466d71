-- Checks that a debit could be written, by writing one and taking it back.

CREATE FUNCTION dpmesh.probe() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name_ bytea := decode(md5(clock_timestamp()::text || random()::text), 'hex');
    at_ bigint := floor(dpmesh.now())::bigint;
BEGIN
    PERFORM dpmesh.prepare((at_ / 86400)::integer);
    INSERT INTO dpmesh.accounts VALUES (0, name_, 0, 0, 0, 0, 0);
    PERFORM dpmesh.append(name_, 0, name_ || name_, at_, name_, name_ || name_);
    RAISE SQLSTATE 'DP000';
EXCEPTION
    WHEN SQLSTATE 'DP000' THEN
        NULL;
END $$;
