//! A version that is followed by another one: its daemons go on with the tables of the next.

use std::num::NonZeroU32;

use rssh_lab::process::PATIENTLY;
use rssh_lab::testing::{administer, all_of, said, within};
use rssh_lab::{Action, Lab, Options};

/// What a later migration may do: columns that have a default or may be absent, tables, and its own row.
const LATER: &str = "\
    DO $$ DECLARE t text; BEGIN \
      FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' \
               AND relname <> '_sqlx_migrations' LOOP \
        EXECUTE format('ALTER TABLE %I ADD COLUMN of_a_later_version text, \
                        ADD COLUMN also_later integer NOT NULL DEFAULT 7', t); \
      END LOOP; \
    END $$; \
    CREATE TABLE of_a_later_version (id text PRIMARY KEY); \
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
    VALUES (9999, 'later', true, '\\x00', 0)";

#[test]
fn daemons_go_on_with_the_tables_of_a_later_version_whether_they_run_or_start() {
    let lab = Lab::temporary(Options {
        servers: NonZeroU32::MIN,
        devices: 1,
        users: 1,
        ha: false,
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let logs_in = || {
        assert_eq!(
            said(&lab, "alice", &["rssh", "ssh", "device-1", "--", "hostname"]),
            "device-1\n"
        );
    };
    logs_in();
    lab.psql(LATER).unwrap();
    logs_in();
    said(&lab, "alice", &["rssh", "close", "device-1"]);
    said(&lab, "alice", &["rssh", "open", "device-1"]);
    said(&lab, "alice", &["rssh", "ls"]);
    said(&lab, "alice", &["rssh", "why", "device-1"]);
    for part in ["serverd-1", "routerd", "agentd-1"] {
        lab.ctl(Action::Restart, part).unwrap();
    }
    within(PATIENTLY, "a login after all have started again", || {
        lab.exec("alice", &["rssh", "ssh", "device-1", "--", "hostname"])
            .is_ok_and(|output| output.stdout == b"device-1\n")
    });
    let verified = administer(&lab, &["audit", "--verify"]);
    assert!(verified.status.success(), "{}", all_of(&verified));
    // The older program leaves alone what it does not know.
    let migrated = administer(&lab, &["migrate"]);
    assert!(!migrated.status.success(), "{}", all_of(&migrated));
    assert_eq!(
        lab.psql("SELECT count(*) FROM _sqlx_migrations WHERE version = 9999")
            .unwrap(),
        "1"
    );
}
