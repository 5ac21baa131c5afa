-- In words of the operator: site=berlin. A grant may select devices by one.
CREATE TABLE IF NOT EXISTS device_tags (
    device_id text NOT NULL REFERENCES devices ON DELETE CASCADE,
    key       text NOT NULL,
    value     text NOT NULL,
    PRIMARY KEY (device_id, key)
);
CREATE INDEX IF NOT EXISTS device_tags_by_value ON device_tags (key, value);

-- A name that is revoked may do nothing until it is taken back.
ALTER TABLE identities ADD COLUMN revoked_at timestamptz;
CREATE INDEX identities_revoked ON identities (name) WHERE revoked_at IS NOT NULL;

-- Limits; null means the configuration's, and for a group none.
ALTER TABLE users ADD COLUMN max_tunnels integer CHECK (max_tunnels >= 0);
ALTER TABLE users ADD COLUMN opens_per_minute integer CHECK (opens_per_minute >= 0);
ALTER TABLE devices ADD COLUMN max_tunnels integer CHECK (max_tunnels >= 0);
ALTER TABLE devices ADD COLUMN opens_per_minute integer CHECK (opens_per_minute >= 0);

CREATE TABLE groups (
    id               text PRIMARY KEY,
    max_tunnels      integer CHECK (max_tunnels >= 0),
    opens_per_minute integer CHECK (opens_per_minute >= 0)
);

CREATE TABLE group_members (
    group_id text NOT NULL REFERENCES groups ON DELETE CASCADE,
    user_id  text NOT NULL REFERENCES users ON DELETE CASCADE,
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX group_members_by_user ON group_members (user_id);

-- A grant is a user's or a group's; for one device, for those with a tag, or for all.
ALTER TABLE grants ALTER COLUMN user_id DROP NOT NULL;
ALTER TABLE grants ADD COLUMN group_id text REFERENCES groups ON DELETE CASCADE;
ALTER TABLE grants ADD COLUMN tag_key text;
ALTER TABLE grants ADD COLUMN tag_value text;
-- The login accounts that a user certificate may name.
ALTER TABLE grants ADD COLUMN accounts text[] NOT NULL DEFAULT '{}';
-- How many tunnels each holder may have by this grant at once, and for how long; null means any.
ALTER TABLE grants ADD COLUMN max_tunnels integer CHECK (max_tunnels >= 0);
ALTER TABLE grants ADD COLUMN max_ttl_s integer CHECK (max_ttl_s > 0);
-- Whether the holder may hand names to others.
ALTER TABLE grants ADD COLUMN share boolean NOT NULL DEFAULT false;
ALTER TABLE grants ADD CHECK ((user_id IS NULL) <> (group_id IS NULL));
ALTER TABLE grants ADD CHECK ((tag_key IS NULL) = (tag_value IS NULL));
ALTER TABLE grants ADD CHECK (device_id IS NULL OR tag_key IS NULL);
ALTER TABLE grants DROP CONSTRAINT grants_user_id_device_id_target_key;
ALTER TABLE grants ADD CONSTRAINT grants_once
    UNIQUE NULLS NOT DISTINCT (user_id, group_id, device_id, tag_key, tag_value, target);
CREATE INDEX grants_of_group ON grants (group_id) WHERE group_id IS NOT NULL;

-- Every grant that a user holds, directly or by a group.
CREATE VIEW held_grants AS
    SELECT g.user_id AS holder, g.* FROM grants g WHERE g.user_id IS NOT NULL
    UNION ALL
    SELECT m.user_id, g.* FROM group_members m JOIN grants g ON g.group_id = m.group_id;

-- The one decision that every reader asks: the grants by which a user may open a target of a device; without a target,
-- anything on it. No row means no. The planner writes it into the query that asks.
CREATE FUNCTION permits(asker text, asked_device text, asked_target text) RETURNS SETOF held_grants
LANGUAGE sql STABLE AS $$
    SELECT g.* FROM held_grants g
    WHERE g.holder = asker
      AND (g.target IS NULL OR asked_target IS NULL OR g.target = asked_target)
      AND (g.device_id = asked_device
           OR (g.device_id IS NULL AND g.tag_key IS NULL)
           OR EXISTS (SELECT FROM device_tags t
                      WHERE t.device_id = asked_device AND t.key = g.tag_key AND t.value = g.tag_value))
      AND NOT EXISTS (SELECT FROM identities i WHERE i.name IN (asker, asked_device) AND i.revoked_at IS NOT NULL)
$$;

-- By which grant a tunnel was opened: its limit counts it.
ALTER TABLE tunnels ADD COLUMN grant_id bigint REFERENCES grants ON DELETE SET NULL;
CREATE INDEX tunnels_by_grant ON tunnels (grant_id) WHERE grant_id IS NOT NULL;
-- Opens per minute are counted.
CREATE INDEX tunnels_of_user_by_age ON tunnels (user_id, created_at);
CREATE INDEX tunnels_of_device_by_age ON tunnels (device_id, created_at);
