-- Takes requests to open tunnels, one after the other in one transaction: checks the grants and the limits, and finds or
-- makes the tunnel of each. The rows that are counted are locked first, in the store's order; what is decided is read by
-- later statements, which see what those who held the locks have done, and what earlier requests of the list did.
CREATE FUNCTION open_tunnels(
    requests uuid[], sessions text[], askers text[], asked_devices text[], targets text[], ports integer[],
    idles integer[], anew boolean[], holds boolean[], waits_ms float8[], lives_s float8[],
    user_most integer, user_most_opens integer, device_most integer, device_most_opens integer)
RETURNS TABLE (
    -- `new`, `existing`, or why not.
    outcome text, tunnel uuid,
    -- Whose limit is reached, and what of it is used.
    who text, most integer, most_opens integer, alive bigint, recent bigint, frees_in_s bigint)
LANGUAGE plpgsql AS $$
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

        SELECT t.id, CASE WHEN t.user_id = askers[i] THEN 'existing' ELSE 'another-users' END INTO tunnel, outcome
            FROM openers o JOIN tunnels t ON t.id = o.tunnel_id WHERE o.request_id = requests[i];
        IF FOUND THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF NOT anew[i] THEN
            SELECT t.id INTO tunnel FROM tunnels t
                WHERE t.user_id = askers[i] AND t.device_id = asked_devices[i] AND t.target = targets[i]
                  AND t.expires_at > clock_timestamp()
                  AND (t.state <> 'requested' OR t.deadline_at > clock_timestamp())
                  AND t.state IN ('requested', 'claimed', 'active', 'reconnecting')
                ORDER BY t.created_at DESC LIMIT 1;
            IF FOUND THEN
                INSERT INTO openers (request_id, tunnel_id, session, hold, waits_until)
                    VALUES (requests[i], tunnel, sessions[i], holds[i],
                            clock_timestamp() + waits_ms[i] * interval '1 ms');
                -- Whoever waits longest decides how long the device has.
                UPDATE tunnels t SET deadline_at = greatest(t.deadline_at, clock_timestamp() + waits_ms[i] * interval '1 ms')
                    WHERE t.id = tunnel AND t.state = 'requested';
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

        INSERT INTO tunnels (id, user_id, device_id, target, remote_port, idle_s, deadline_at, expires_at, grant_id)
            VALUES (requests[i], askers[i], asked_devices[i], targets[i], ports[i], idles[i],
                    clock_timestamp() + waits_ms[i] * interval '1 ms',
                    clock_timestamp() + least(lives_s[i], longest) * interval '1 s', by_grant);
        INSERT INTO openers (request_id, tunnel_id, session, hold, waits_until)
            VALUES (requests[i], requests[i], sessions[i], holds[i], clock_timestamp() + waits_ms[i] * interval '1 ms');
        wrote := true;
        tunnel := requests[i];
        outcome := 'new';
        RETURN NEXT;
    END LOOP;
    IF NOT wrote THEN
        -- Nothing but locks was written, and a commit would wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END
$$;
