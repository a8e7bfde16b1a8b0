//! Checks that the files which start Prometheus and Grafana fit each other and the folder.

use serde_json::{Value, json};

use crate::{files::grafana, yaml};

fn list<'a>(of: &'a Value, key: &str) -> &'a Vec<Value> {
    of[key].as_array().unwrap_or_else(|| panic!("no list {key:?} in {of}"))
}

#[test]
fn prometheus_scrapes_ports_of_this_host_and_loads_the_rules() {
    let config = yaml::read(&grafana().join("prometheus.yml"));
    assert_eq!(config["rule_files"], json!(["rules/*.yml"]), "relative, as the file may lie anywhere");
    let [job] = &list(&config, "scrape_configs")[..] else { panic!("one job") };
    assert_eq!(job["job_name"], "interlock");
    let [targets] = &list(job, "static_configs")[..] else { panic!("one list of targets") };
    for (rank, target) in list(targets, "targets").iter().enumerate() {
        assert_eq!(target, &json!(format!("127.0.0.1:{}", 9464 + rank)), "the port is a base plus the rank");
    }
}

#[test]
fn grafana_finds_prometheus_and_the_dashboards() {
    let folder = grafana();
    let source = yaml::read(&folder.join("provisioning/datasources/interlock.yml"));
    let [source] = &list(&source, "datasources")[..] else { panic!("one data source") };
    assert_eq!(source["type"], "prometheus");
    let config = yaml::read(&folder.join("prometheus.yml"));
    let interval = &config["global"]["scrape_interval"];
    assert_eq!(&source["jsonData"]["timeInterval"], interval, "or rates are taken over too few samples");

    let compose = yaml::read(&folder.join("docker-compose.yml"));
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["prometheus", "grafana"]);
    for (name, service) in services {
        let (_, version) = service["image"].as_str().unwrap().rsplit_once(':').unwrap();
        let numbers = version.trim_start_matches('v').split('.');
        assert_eq!(
            numbers.filter(|number| number.parse::<u32>().is_ok()).count(),
            3,
            "{name}: {version} is not one version"
        );
        assert_eq!((&service["network_mode"], service.get("ports")), (&json!("host"), None), "{name}");
        for volume in list(service, "volumes") {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let there =
                if from.starts_with('.') { folder.join(from).exists() } else { compose["volumes"].get(from).is_some() };
            assert!(there, "{name}: {from} is not there");
        }
    }
    let mounted = |service: &str, from: &str| -> String {
        let volumes = list(&services[service], "volumes");
        let to = volumes.iter().find_map(|volume| volume.as_str().unwrap().strip_prefix(from)?.split(':').nth(1));
        to.unwrap_or_else(|| panic!("{service} does not see {from}")).to_owned()
    };
    let command = list(&services["prometheus"], "command");
    assert!(command.contains(&json!(format!("--config.file={}", mounted("prometheus", "./prometheus.yml")))));
    assert_eq!(mounted("prometheus", "./rules"), "/etc/prometheus/rules", "beside the configuration that names it");
    // Both listen on the loopback address only, and the data source names the address of Prometheus.
    let url = source["url"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert!(url.starts_with("127.0.0.1:") && command.contains(&json!(format!("--web.listen-address={url}"))), "{url}");
    let environment = &services["grafana"]["environment"];
    assert_eq!(environment["GF_SERVER_HTTP_ADDR"], "127.0.0.1");

    assert_eq!(mounted("grafana", "./provisioning"), "/etc/grafana/provisioning");
    let provider = yaml::read(&folder.join("provisioning/dashboards/interlock.yml"));
    let [provider] = &list(&provider, "providers")[..] else { panic!("one provider") };
    let shown = mounted("grafana", "./dashboards");
    assert_eq!(provider["options"]["path"], shown);
    let home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    let home = home.strip_prefix(&format!("{shown}/")).unwrap();
    assert!(folder.join("dashboards").join(home).exists(), "{home}");
}
