-- The steps of every open: one function for each, which takes a group of calls and is a transaction of its own. A connection
-- keeps the plans of what a function is made of, while a statement with lists is planned anew for each group, at a higher
-- price than its rows. One plan has to serve an empty table and a full one: so each row is looked up by itself, by its key, and
-- what else is asked of it is said in a way (`IS TRUE`) that looks like the key of no other index.

-- Takes requests to open tunnels, one after the other in one transaction: checks the grants and the limits, and finds or
-- makes the tunnel of each. The rows that are counted are locked first, in the store's order; what is decided is read by
-- later statements, which see what those who held the locks have done, and what earlier requests of the list did.
CREATE FUNCTION take_requests(
    requests uuid[], sessions text[], askers text[], asked_devices text[], targets text[], ports integer[],
    idles integer[], anew boolean[], holds boolean[], waits_ms float8[], lives_s float8[],
    user_most integer, user_most_opens integer, device_most integer, device_most_opens integer)
RETURNS TABLE (
    -- `new`, `existing`, or why not.
    outcome text, tunnel tunnels,
    -- Whose limit is reached, and what of it is used.
    who text, most integer, most_opens integer, alive bigint, recent bigint, frees_in_s bigint)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    asker     users%ROWTYPE;
    device    devices%ROWTYPE;
    by_grant  bigint;
    longest   integer;
    wrote     boolean := false;
BEGIN
    PERFORM FROM users u WHERE u.id = ANY(askers) ORDER BY u.id FOR NO KEY UPDATE;
    PERFORM FROM groups g
        WHERE (g.max_tunnels IS NOT NULL OR g.opens_per_minute IS NOT NULL)
          AND g.id IN (SELECT m.group_id FROM group_members m WHERE m.user_id = ANY(askers))
        ORDER BY g.id FOR NO KEY UPDATE;
    PERFORM FROM devices d WHERE d.id = ANY(asked_devices) ORDER BY d.id FOR NO KEY UPDATE;
    FOR i IN 1 .. cardinality(requests) LOOP
        tunnel := NULL;
        who := NULL;
        SELECT * INTO asker FROM users u WHERE u.id = askers[i];
        IF NOT FOUND THEN
            outcome := 'not-enrolled';
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- Of the grants that allow it, one that has room for it: the one that lets it live longest.
        SELECT p.id, p.max_ttl_s INTO by_grant, longest FROM permits(askers[i], asked_devices[i], targets[i]) p
            WHERE p.max_tunnels IS NULL OR p.max_tunnels > (
                SELECT count(*) FROM tunnels t WHERE t.grant_id = p.id AND t.user_id = askers[i]
                    AND t.state IN ('requested', 'claimed', 'active', 'reconnecting'))
            ORDER BY p.max_ttl_s DESC NULLS FIRST, p.id LIMIT 1;
        IF by_grant IS NULL AND NOT EXISTS (SELECT FROM permits(askers[i], asked_devices[i], targets[i])) THEN
            outcome := 'not-granted';
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT * INTO device FROM devices d WHERE d.id = asked_devices[i];
        IF NOT FOUND THEN
            outcome := 'unknown-device';
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF device.quarantined_until > clock_timestamp() THEN
            outcome := 'quarantined';
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT t.* INTO tunnel FROM openers o JOIN tunnels t ON t.id = o.tunnel_id WHERE o.request_id = requests[i];
        IF FOUND THEN
            outcome := CASE WHEN tunnel.user_id = askers[i] THEN 'existing' ELSE 'another-users' END;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF NOT anew[i] THEN
            SELECT t.* INTO tunnel FROM tunnels t
                WHERE t.user_id = askers[i] AND t.device_id = asked_devices[i] AND t.target = targets[i]
                  AND t.expires_at > clock_timestamp()
                  AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp())
                  AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')
                ORDER BY t.created_at DESC LIMIT 1;
            IF FOUND THEN
                INSERT INTO openers (request_id, tunnel_id, session, hold, waits_until)
                    VALUES (requests[i], tunnel.id, sessions[i], holds[i],
                            clock_timestamp() + waits_ms[i] * interval '1 ms');
                -- Whoever waits longest decides how long the device has.
                UPDATE tunnels t SET deadline_at = greatest(t.deadline_at, clock_timestamp() + waits_ms[i] * interval '1 ms')
                    WHERE t.id = tunnel.id AND t.state = 'requested';
                SELECT t.* INTO tunnel FROM tunnels t WHERE t.id = tunnel.id;
                wrote := true;
                outcome := 'existing';
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;

        outcome := 'used-up';
        who := asker.id;
        most := coalesce(asker.max_tunnels, user_most);
        most_opens := coalesce(asker.opens_per_minute, user_most_opens);
        SELECT count(*) INTO alive FROM tunnels t
            WHERE t.user_id = askers[i] AND t.state IN ('requested', 'claimed', 'active', 'reconnecting');
        SELECT count(*), ceil(extract(epoch FROM min(t.created_at) + interval '1 min' - clock_timestamp()))
            INTO recent, frees_in_s FROM tunnels t
            WHERE t.user_id = askers[i] AND t.created_at > clock_timestamp() - interval '1 min';
        IF alive >= most OR recent >= most_opens THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        who := device.id;
        most := coalesce(device.max_tunnels, device_most);
        most_opens := coalesce(device.opens_per_minute, device_most_opens);
        SELECT count(*) INTO alive FROM tunnels t
            WHERE t.device_id = asked_devices[i] AND t.state IN ('requested', 'claimed', 'active', 'reconnecting');
        SELECT count(*), ceil(extract(epoch FROM min(t.created_at) + interval '1 min' - clock_timestamp()))
            INTO recent, frees_in_s FROM tunnels t
            WHERE t.device_id = asked_devices[i] AND t.created_at > clock_timestamp() - interval '1 min';
        IF alive >= most OR recent >= most_opens THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT 'the group ' || g.id, g.max_tunnels, g.opens_per_minute, living.count, young.count,
               ceil(extract(epoch FROM young.oldest + interval '1 min' - clock_timestamp()))
            INTO who, most, most_opens, alive, recent, frees_in_s
            FROM groups g JOIN group_members m ON m.group_id = g.id,
                LATERAL (SELECT count(*) FROM tunnels t JOIN group_members o ON o.user_id = t.user_id
                         WHERE o.group_id = g.id AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')) living,
                LATERAL (SELECT count(*), min(t.created_at) AS oldest FROM tunnels t
                         JOIN group_members o ON o.user_id = t.user_id
                         WHERE o.group_id = g.id AND t.created_at > clock_timestamp() - interval '1 min') young
            WHERE m.user_id = askers[i] AND (living.count >= g.max_tunnels OR young.count >= g.opens_per_minute)
            ORDER BY g.id LIMIT 1;
        IF FOUND THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF by_grant IS NULL THEN
            outcome := 'grant-used-up';
            RETURN NEXT;
            CONTINUE;
        END IF;

        INSERT INTO tunnels AS t (id, user_id, device_id, target, remote_port, idle_s, deadline_at, expires_at, grant_id)
            VALUES (requests[i], askers[i], asked_devices[i], targets[i], ports[i], idles[i],
                    clock_timestamp() + waits_ms[i] * interval '1 ms',
                    clock_timestamp() + least(lives_s[i], longest) * interval '1 s', by_grant)
            RETURNING t.* INTO tunnel;
        INSERT INTO openers (request_id, tunnel_id, session, hold, waits_until)
            VALUES (requests[i], requests[i], sessions[i], holds[i], clock_timestamp() + waits_ms[i] * interval '1 ms');
        wrote := true;
        outcome := 'new';
        RETURN NEXT;
    END LOOP;
    IF NOT wrote THEN
        -- Nothing but locks was written, and a commit would wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END
$$;

-- Finds whose keys these are, and which tunnels of each device a login at these servers may be for: of each key two at most,
-- those that wait first.
CREATE FUNCTION take_logins(servers text[], keys text[])
RETURNS TABLE (at integer, device text, tunnel uuid, state text, wish integer)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    FOR i IN 1 .. cardinality(keys) LOOP
        SELECT d.id INTO device FROM devices d
            WHERE (d.ssh_key = keys[i] OR (d.ssh_key_before = keys[i] AND d.ssh_key_before_until > clock_timestamp()))
              AND NOT EXISTS (SELECT FROM identities i WHERE i.name = d.id AND i.revoked_at IS NOT NULL)
              AND (d.quarantined_until IS NULL OR d.quarantined_until < clock_timestamp())
            ORDER BY d.ssh_key = keys[i] DESC LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        -- A live tunnel may land again at any time: its device's link may have changed before its server noticed.
        -- Whether there is one or more is all that matters, and whether more than one waits.
        RETURN QUERY
            SELECT i, device, t.id, t.state, CASE WHEN t.server_id = servers[i] THEN t.port ELSE t.remote_port END
            FROM tunnels t
            WHERE t.device_id = device AND t.expires_at > clock_timestamp()
              AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp())
              AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')
            ORDER BY t.state = 'active' LIMIT 2;
    END LOOP;
END
$$;

-- Gives ports to tunnels that may be claimed, and takes the older leases of those tunnels away. Fails as a whole when a port is
-- not free. Returns the tunnels that were claimed, and the server of an older lease that was taken away.
CREATE FUNCTION take_claims(
    ids uuid[], devices text[], servers text[], ports integer[], pids integer[], starts bigint[], boots text[],
    rests_s float8[])
RETURNS TABLE (tunnel tunnels, older text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    i        integer;
    -- By the number of the call.
    claimed  tunnels[];
    ended_on text[];
BEGIN
    -- The store's order: tunnels by id, then leases by server and port.
    FOR i IN SELECT n.i FROM unnest(ids) WITH ORDINALITY AS n(id, i) ORDER BY n.id LOOP
        UPDATE tunnels t SET epoch = t.epoch + 1, state = 'claimed', server_id = servers[i], port = ports[i],
            claimed_at = clock_timestamp(), answered_at = coalesce(t.answered_at, clock_timestamp())
            WHERE t.id = ids[i]
              AND (t.device_id = devices[i] AND t.expires_at > clock_timestamp()
                   AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp())
                   AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')) IS TRUE
            RETURNING t.* INTO tunnel;
        IF FOUND THEN
            claimed[i] := tunnel;
        END IF;
    END LOOP;
    FOR i IN SELECT n.i FROM unnest(ids) WITH ORDINALITY AS n(id, i) ORDER BY n.id LOOP
        -- A tunnel that is claimed for the first time has no older lease.
        CONTINUE WHEN claimed[i].epoch IS NULL OR claimed[i].epoch = 1;
        UPDATE leases l SET released_at = clock_timestamp(), evict = true,
            free_after = greatest(clock_timestamp() + rests_s[i] * interval '1 s', l.named_until)
            WHERE l.tunnel_id = ids[i] AND l.released_at IS NULL
            RETURNING l.server_id INTO older;
        ended_on[i] := older;
    END LOOP;
    FOR i IN SELECT n.i FROM unnest(servers, ports) WITH ORDINALITY AS n(server, port, i) ORDER BY n.server, n.port LOOP
        CONTINUE WHEN claimed[i].epoch IS NULL;
        -- A resting port may go back to the tunnel that had it: its old names lead to the same device and target.
        INSERT INTO leases AS l (server_id, port, tunnel_id, epoch, session_pid, session_start, boot_id)
            VALUES (servers[i], ports[i], ids[i], claimed[i].epoch, pids[i], starts[i], boots[i])
            ON CONFLICT (server_id, port) DO UPDATE SET
                tunnel_id = excluded.tunnel_id, epoch = excluded.epoch, session_pid = excluded.session_pid,
                session_start = excluded.session_start, boot_id = excluded.boot_id, claimed_at = clock_timestamp(),
                released_at = NULL, free_after = NULL, evict = false,
                named_until = CASE WHEN l.tunnel_id = excluded.tunnel_id THEN l.named_until END
            WHERE l.released_at IS NOT NULL AND (l.free_after <= clock_timestamp() OR l.tunnel_id = excluded.tunnel_id);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'port % of % is leased or resting', ports[i], servers[i] USING ERRCODE = 'RS001';
        END IF;
        tunnel := claimed[i];
        older := ended_on[i];
        RETURN NEXT;
    END LOOP;
END
$$;

-- Notes acknowledgements of tunnels by their devices. Returns of each call whether another agent spoke for the device before,
-- and the tunnel, where there was something to note. Losing one on a crash loses nothing: the order is repeated.
CREATE FUNCTION take_acknowledgements(ids uuid[], asked_devices text[], instances text[])
RETURNS TABLE (another boolean, tunnel tunnels)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR i IN 1 .. cardinality(ids) LOOP
        another := EXISTS (SELECT FROM devices d WHERE d.id = asked_devices[i] AND d.instance IS DISTINCT FROM instances[i]);
        tunnel := NULL;
        -- Whoever holds the row now claims the tunnel or ends it; else the order is repeated, and acknowledged once more.
        PERFORM FROM tunnels t
            WHERE t.id = ids[i]
              AND (t.device_id = asked_devices[i] AND t.answered_at IS NULL
                   AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')) IS TRUE
            FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE tunnels t SET answered_at = clock_timestamp() WHERE t.id = ids[i] RETURNING t.* INTO tunnel;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Marks claimed tunnels as active, whose ssh had landed so long ago. Losing this on a crash loses nothing: whoever adopts the
-- session sees its listener again.
CREATE FUNCTION take_listeners(ids uuid[], epochs bigint[], landed_ago_s float8[]) RETURNS SETOF tunnels
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    i integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR i IN SELECT n.i FROM unnest(ids) WITH ORDINALITY AS n(id, i) ORDER BY n.id LOOP
        RETURN QUERY
            UPDATE tunnels t SET state = 'active', active_at = clock_timestamp(),
                landed_at = coalesce(clock_timestamp() - landed_ago_s[i] * interval '1 s', t.landed_at)
            WHERE t.id = ids[i] AND (t.epoch = epochs[i] AND t.state IN ('claimed', 'active')) IS TRUE
            RETURNING t.*;
    END LOOP;
END
$$;

-- As before, with the events read as rows: taking each value out of JSON by itself, and a function of SQL for the text, took a
-- third of the time.
CREATE OR REPLACE FUNCTION audit_append(writer text, events jsonb, OUT head_seq bigint, OUT head_hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    event   record;
    before  bytea;
    salting bytea;
    digest  bytea;
BEGIN
    INSERT INTO audit_heads VALUES (writer, 0, sha256(convert_to(writer, 'UTF8')), 0, sha256(convert_to(writer, 'UTF8')))
        ON CONFLICT DO NOTHING;
    SELECT h.seq, h.hash INTO head_seq, head_hash FROM audit_heads h WHERE h.chain = writer FOR UPDATE;
    FOR event IN
        SELECT * FROM jsonb_to_recordset(events)
            AS e(at_us bigint, kind text, device text, tunnel uuid, detail jsonb, "user" text, source text)
    LOOP
        head_seq := head_seq + 1;
        before := head_hash;
        salting := NULL;
        digest := NULL;
        IF event."user" IS NOT NULL OR event.source IS NOT NULL THEN
            salting := uuid_send(gen_random_uuid());
            digest := sha256(salting || convert_to(
                coalesce(event."user", '') || ' ' || coalesce(event.source, ''), 'UTF8'));
        END IF;
        -- The text is that of audit_text, by which a chain is verified.
        head_hash := sha256(before || convert_to(
            jsonb_build_array(writer, head_seq, event.at_us, event.kind, event.device, event.tunnel, event.detail,
                              encode(digest, 'hex'))::text, 'UTF8'));
        INSERT INTO audit_events VALUES (
            writer, head_seq, event.at_us, event.kind, event.device, event.tunnel, event.detail, event."user",
            event.source, salting, digest, before, head_hash);
    END LOOP;
    UPDATE audit_heads h SET seq = head_seq, hash = head_hash WHERE h.chain = writer;
END
$$;
