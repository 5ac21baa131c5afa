-- What the daemons' own roles may do, where the operator has made them. Run after the migrations, as the tables' owner.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rssh_serverd') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO rssh_serverd;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO rssh_serverd;
        -- What happened is appended to and never changed: by audit_append and audit_anchor only.
        REVOKE INSERT, UPDATE, DELETE ON audit_events, audit_heads, _sqlx_migrations FROM rssh_serverd;
        GRANT EXECUTE ON FUNCTION audit_append, audit_anchor TO rssh_serverd;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rssh_routerd') THEN
        GRANT SELECT (id, registration, generation, state, lost_at) ON servers TO rssh_routerd;
        GRANT SELECT (name, kind, revoked_at) ON identities TO rssh_routerd;
        GRANT SELECT, INSERT, UPDATE ON routers TO rssh_routerd;
        GRANT EXECUTE ON FUNCTION audit_append TO rssh_routerd;
    END IF;
    REVOKE EXECUTE ON FUNCTION audit_append, audit_anchor FROM PUBLIC;
END
$$;
