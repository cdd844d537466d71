-- The database's time, and the window that is in force at a time.

CREATE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS
    'SELECT extract(epoch FROM clock_timestamp())::double precision';
CREATE FUNCTION dpmesh.in_force(now_ double precision, length_ bigint, latest_ bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS
    'SELECT CASE WHEN length_ IS NULL THEN 0 ELSE greatest(latest_, floor(now_)::bigint / length_ * length_) END';
