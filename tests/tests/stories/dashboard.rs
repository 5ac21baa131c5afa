//! The alerts and the dashboard, in the Prometheus that Debian has, which reads the daemons of the lab.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rssh_lab::Lab;
use rssh_lab::place::{HEALTH_PORT, LB, Place, ROUTER_METRICS_PORT, server_address, socket};
use rssh_lab::process::PATIENTLY;
use serde_json::Value;

use crate::{Running, all_of, lab, open, said, within};

/// Where Prometheus answers, in the lab's own network.
const ADDRESS: &str = "127.0.0.1:9090";
/// Where the alerts and the dashboard are.
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/prometheus");

/// Starts a Prometheus that reads both servers and the router every second, with the alerts.
fn prometheus(lab: &Lab) -> Running {
    let dir = lab.dir().join("prometheus");
    fs::create_dir_all(&dir).unwrap();
    fs::copy(format!("{FILES}/rssh.rules.yml"), dir.join("rssh.rules.yml")).unwrap();
    let servers = [1, 2].map(|n| format!("\"{}\"", socket(server_address(n), HEALTH_PORT)));
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [rssh.rules.yml]\n\
         scrape_configs:\n\
         - {{job_name: rssh-serverd, static_configs: [{{targets: [{}]}}]}}\n\
         - {{job_name: rssh-routerd, static_configs: [{{targets: [\"{}\"]}}]}}\n",
        servers.join(", "),
        socket(LB, ROUTER_METRICS_PORT)
    );
    fs::write(dir.join("prometheus.yml"), config).unwrap();
    let inside = lab.dir().inside("prometheus");
    let argv = [
        "prometheus",
        &format!("--config.file={inside}/prometheus.yml"),
        &format!("--storage.tsdb.path={inside}/data"),
        &format!("--web.listen-address={ADDRESS}"),
    ];
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = lab.command(&Place::Core, &argv);
    Running(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    )
}

/// What a query returns: values that are numbers.
fn query(lab: &Lab, expression: &str) -> Vec<f64> {
    let url = format!("http://{ADDRESS}/api/v1/query");
    let query = format!("query={expression}");
    let argv = ["curl", "--silent", "--max-time", "10", "--data-urlencode", &query, &url];
    let output = lab.command(&Place::Core, &argv).output().unwrap();
    // Until it listens.
    let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else {
        return Vec::new();
    };
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    let results = answer["data"]["result"].as_array().unwrap();
    let values = results.iter().map(|result| result["value"][1].as_str().unwrap());
    values
        .map(|value| value.parse().unwrap())
        .filter(|value: &f64| value.is_finite())
        .collect()
}

/// The queries of the dashboard, as Grafana sends them.
fn queries() -> Vec<String> {
    let text = fs::read_to_string(format!("{FILES}/rssh.dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| target["expr"].as_str().unwrap().replace("$__rate_interval", "1m"))
        .collect()
}

#[test]
fn every_query_of_the_dashboard_returns_data() {
    let lab = lab();
    let _prometheus = prometheus(&lab);
    within(PATIENTLY, "both servers and the router are read", || {
        query(&lab, "sum(up) == 3").len() == 1
    });
    // Something to see, while it looks.
    for _ in 0..2 {
        open(&lab, "mike", "device-3");
        said(&lab, "mike", &["rssh", "close", "device-3", "--force"]);
    }
    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    for expression in &queries {
        within(PATIENTLY, expression, || !query(&lab, expression).is_empty());
    }
    assert!(query(&lab, "count(no_such_metric)").is_empty());
}

#[test]
fn each_alert_fires_when_it_should_and_is_tested() {
    let promtool = |argv: &[&str]| {
        let output = Command::new("promtool").args(argv).current_dir(FILES).output().unwrap();
        assert!(output.status.success(), "{}", all_of(&output));
    };
    promtool(&["check", "rules", "rssh.rules.yml"]);
    promtool(&["test", "rules", "rssh.test.yml"]);
    let [rules, tests] =
        ["rssh.rules.yml", "rssh.test.yml"].map(|name| fs::read_to_string(Path::new(FILES).join(name)));
    let (rules, tests) = (rules.unwrap(), tests.unwrap());
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "no test has {alert} fire");
    }
}
