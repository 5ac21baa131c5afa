-- What happened: one chain of hashes per writer, which is a server, a router, or the administrator's commands.
CREATE TABLE audit_events (
    chain     text NOT NULL,
    seq       bigint NOT NULL,
    -- Microseconds since 1970, by the writer's clock.
    at_us     bigint NOT NULL,
    kind      text NOT NULL,
    device_id text,
    tunnel_id uuid,
    detail    jsonb NOT NULL,
    -- Whom it tells of, and from which address. The chain covers a salted digest of both, so that they can be forgotten
    -- and the chain still holds.
    user_id   text,
    source    text,
    salt      bytea,
    person    bytea,
    prev      bytea NOT NULL,
    hash      bytea NOT NULL,
    PRIMARY KEY (chain, seq)
);
CREATE INDEX audit_by_age ON audit_events (at_us);
CREATE INDEX audit_of_user ON audit_events (user_id, at_us) WHERE user_id IS NOT NULL;
CREATE INDEX audit_of_device ON audit_events (device_id, at_us) WHERE device_id IS NOT NULL;
-- As whom sshd sees a device, and as whom the load balancer does.
CREATE INDEX audit_via ON audit_events ((detail ->> 'via')) WHERE kind = 'device-connection';

-- Where each chain ends, and where what is left of it begins.
CREATE TABLE audit_heads (
    chain      text PRIMARY KEY,
    seq        bigint NOT NULL,
    hash       bytea NOT NULL,
    base_seq   bigint NOT NULL,
    base_hash  bytea NOT NULL
);

-- What an event's hash is made of, after the hash before it.
CREATE FUNCTION audit_text(chain text, seq bigint, at_us bigint, kind text, device_id text, tunnel_id uuid, detail jsonb,
                           person bytea)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_array(chain, seq, at_us, kind, device_id, tunnel_id, detail, encode(person, 'hex'))::text
$$;

-- Appends events to a writer's chain; returns its new head. The daemons may append by this only, and change nothing.
CREATE FUNCTION audit_append(writer text, events jsonb, OUT head_seq bigint, OUT head_hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    event   jsonb;
    before  bytea;
    salting bytea;
    digest  bytea;
BEGIN
    INSERT INTO audit_heads VALUES (writer, 0, sha256(convert_to(writer, 'UTF8')), 0, sha256(convert_to(writer, 'UTF8')))
        ON CONFLICT DO NOTHING;
    SELECT h.seq, h.hash INTO head_seq, head_hash FROM audit_heads h WHERE h.chain = writer FOR UPDATE;
    FOR event IN SELECT jsonb_array_elements(events) LOOP
        head_seq := head_seq + 1;
        before := head_hash;
        salting := NULL;
        digest := NULL;
        IF event ->> 'user' IS NOT NULL OR event ->> 'source' IS NOT NULL THEN
            salting := uuid_send(gen_random_uuid());
            digest := sha256(salting || convert_to(
                coalesce(event ->> 'user', '') || ' ' || coalesce(event ->> 'source', ''), 'UTF8'));
        END IF;
        head_hash := sha256(before || convert_to(
            audit_text(writer, head_seq, (event ->> 'at_us')::bigint, event ->> 'kind', event ->> 'device',
                       (event ->> 'tunnel')::uuid, event -> 'detail', digest), 'UTF8'));
        INSERT INTO audit_events VALUES (
            writer, head_seq, (event ->> 'at_us')::bigint, event ->> 'kind', event ->> 'device',
            (event ->> 'tunnel')::uuid, event -> 'detail', event ->> 'user', event ->> 'source', salting, digest,
            before, head_hash);
    END LOOP;
    UPDATE audit_heads h SET seq = head_seq, hash = head_hash WHERE h.chain = writer;
END
$$;

-- Notes in a writer's chain where all the others end: none of them can be rewritten alone.
CREATE FUNCTION audit_anchor(writer text, now_us bigint, OUT head_seq bigint, OUT head_hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    heads jsonb;
BEGIN
    SELECT coalesce(jsonb_object_agg(h.chain, jsonb_build_array(h.seq, encode(h.hash, 'hex'))), '{}') INTO heads
        FROM audit_heads h WHERE h.chain <> writer AND h.seq > 0;
    SELECT a.head_seq, a.head_hash INTO head_seq, head_hash FROM audit_append(writer, jsonb_build_array(
        jsonb_build_object('at_us', now_us, 'kind', 'anchor', 'detail', jsonb_build_object('heads', heads)))) a;
END
$$;
