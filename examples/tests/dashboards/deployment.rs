//! Checks that the files which start Prometheus and Grafana fit each other and the folder.

use std::fs;

use serde_json::{Value, json};

use crate::{files::grafana, yaml};

fn list<'a>(of: &'a Value, key: &str) -> &'a Vec<Value> {
    of[key].as_array().unwrap_or_else(|| panic!("no list {key:?} in {of}"))
}

#[test]
fn prometheus_scrapes_ports_of_the_host_and_loads_the_rules() {
    let folder = grafana();
    let config = yaml::read(&folder.join("prometheus.yml"));
    assert_eq!(config["rule_files"], json!(["rules/*.yml"]), "relative, as the file may lie anywhere");
    let [job] = &list(&config, "scrape_configs")[..] else { panic!("one job") };
    assert_eq!(job["job_name"], "interlock");
    assert_eq!(job["file_sd_configs"], json!([{ "files": ["targets.yml"] }]), "docker-compose.yml replaces this file");
    assert_eq!(job.get("static_configs"), None, "runs would be scraped twice");
    // A process of the host reaches runs at the loopback address, a container by the name of its host.
    for (file, host) in [("targets.yml", "127.0.0.1"), ("targets.docker.yml", "host.docker.internal")] {
        let groups = yaml::read(&folder.join(file));
        let [group] = &groups.as_array().unwrap()[..] else { panic!("{file}: one list of targets") };
        let expected: Vec<String> = (9464..9468).map(|port| format!("{host}:{port}")).collect();
        assert_eq!(group, &json!({ "targets": expected }), "{file}: the port is a base plus the rank");
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
        assert_eq!(service.get("network_mode"), None, "{name}: Docker Desktop has no network of the host");
        for port in list(service, "ports") {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port} is open to other machines");
        }
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
    let prometheus = &services["prometheus"];
    let config = mounted("prometheus", "./prometheus.yml");
    assert!(list(prometheus, "command").contains(&json!(format!("--config.file={config}"))));
    let beside = |name: &str| config.replace("prometheus.yml", name);
    assert_eq!(mounted("prometheus", "./rules"), beside("rules"), "beside the configuration that names it");
    assert_eq!(mounted("prometheus", "./targets.docker.yml"), beside("targets.yml"), "in place of the host's targets");
    // Linux needs the name of the host, which the targets have.
    assert_eq!(prometheus["extra_hosts"], json!(["host.docker.internal:host-gateway"]));
    // Containers find each other by the names of their services.
    let (service, port) = source["url"].as_str().unwrap().strip_prefix("http://").unwrap().split_once(':').unwrap();
    assert_eq!(service, "prometheus");
    assert_eq!(prometheus["ports"], json!([format!("127.0.0.1:{port}:{port}")]));
    assert_eq!(services["grafana"]["ports"], json!(["127.0.0.1:3000:3000"]), "the address that README.md names");
    let environment = &services["grafana"]["environment"];
    assert_eq!(environment.get("GF_SERVER_HTTP_ADDR"), None, "a published port needs all addresses of the container");
    let checked: Value = serde_json::from_str(&fs::read_to_string(folder.join("draw/package.json")).unwrap()).unwrap();
    let version = checked["dependencies"]["@grafana/schema"].as_str().unwrap();
    assert_eq!(services["grafana"]["image"], format!("grafana/grafana:{version}"), "as draw/types.mjs checks");

    assert_eq!(mounted("grafana", "./provisioning"), "/etc/grafana/provisioning");
    let provider = yaml::read(&folder.join("provisioning/dashboards/interlock.yml"));
    let [provider] = &list(&provider, "providers")[..] else { panic!("one provider") };
    let shown = mounted("grafana", "./dashboards");
    assert_eq!(provider["options"]["path"], shown);
    let home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    let home = home.strip_prefix(&format!("{shown}/")).unwrap();
    assert!(folder.join("dashboards").join(home).exists(), "{home}");
}
