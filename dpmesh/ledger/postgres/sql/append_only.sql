-- The charge log only grows. Pruning drops whole partitions.

CREATE FUNCTION dpmesh.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the charge log is append-only';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON dpmesh.charges
    FOR EACH ROW EXECUTE FUNCTION dpmesh.refuse_change();
