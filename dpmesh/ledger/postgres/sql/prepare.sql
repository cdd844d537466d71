-- Makes the partitions of the charge log, one a day. It runs as the owner of the tables, whoever calls it: holders need no
-- right to make tables, and get only partitions that they use.

CREATE FUNCTION dpmesh.add_part(day_ integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass('dpmesh.charges_' || day_) IS NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('dpmesh.prepare'));
        -- Looked up: to_regclass remembers what was not there before this waited.
        IF NOT EXISTS (
            SELECT FROM pg_class WHERE relnamespace = 'dpmesh'::regnamespace AND relname = 'charges_' || day_
        ) THEN
            EXECUTE format('CREATE TABLE dpmesh.charges_%s (LIKE dpmesh.charges INCLUDING ALL)', day_);
            EXECUTE format('ALTER TABLE dpmesh.charges ATTACH PARTITION dpmesh.charges_%s '
                           'FOR VALUES FROM (%s) TO (%s)', day_, day_, day_ + 1);
        END IF;
    END IF;
END $$;
CREATE FUNCTION dpmesh.prepare(day_ integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today integer := floor(dpmesh.now())::bigint / 86400;
BEGIN
    -- One that is there is good, however the clock was moved since it was made.
    IF to_regclass('dpmesh.charges_' || day_) IS NULL AND day_ NOT BETWEEN today - 4000 AND today + 40 THEN
        RAISE EXCEPTION 'no day that is charged';
    END IF;
    -- Some days ahead, and attached: so that nobody who charges waits for it, nor it for somebody who reads the log.
    FOR d IN day_ .. least(day_ + 3, greatest(day_, today + 43)) LOOP
        PERFORM dpmesh.add_part(d);
    END LOOP;
END $$;
