//! The table of threats in docs/security.md.

use std::fs;
use std::path::{Path, PathBuf};

/// The rows that it must have.
const ROWS: [&str; 10] = [
    "One serverd host is rooted",
    "A routerd host is rooted",
    "The broker is taken over",
    "A writer in Redis",
    "A PostgreSQL dump is stolen",
    "A device is stolen",
    "A malicious user",
    "A sniffer between load balancer and servers",
    "A sniffer before the load balancer",
    "A lost laptop",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_threat_has_its_row_and_every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| threat "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for row in ROWS {
        assert!(rows.iter().any(|cells| cells[0] == row), "there is no row: {row}");
    }
    let mut files = Vec::new();
    sources(root, &mut files);
    let code: Vec<String> = files.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    for cells in &rows {
        let [threat, defence, tests] = cells[..] else {
            panic!("not three cells: {cells:?}")
        };
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(
            !named.is_empty() || defence.contains("**Not defended:**"),
            "{threat}: no test"
        );
        for name in named {
            let exists = code.iter().any(|text| {
                let at = text.find(&format!("fn {name}()"));
                at.is_some_and(|at| text[..at].trim_end_matches("async ").trim_end().ends_with(']'))
            });
            assert!(exists, "{threat}: there is no test {name}");
        }
    }
}
