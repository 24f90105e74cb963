//! Manifests of `dist/kubernetes`: each is rendered by kustomize, known to Kubernetes, and says what it should.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{Probe, Volume},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tfo_tests::kubernetes::Manifests;
use tfo_userspace::{
    config::{Config, Keys},
    model::settings::KeysFrom,
};

/// Folders that are applied by themselves.
const ALL: [&str; 3] = ["base", "secret", "remove"];

#[test]
fn every_object_is_one_of_kubernetes() {
    for name in ALL {
        let manifests = Manifests::render(name);
        let set = &manifests.daemon_set;
        let spec = set.spec.as_ref().expect("a specification");
        let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
        assert_eq!(labels, spec.selector.match_labels.as_ref(), "{name}: it selects its own pods");
        assert_eq!(set.metadata.namespace, manifests.namespace.metadata.name, "{name}");
        for container in
            manifests.pod().containers.iter().chain(manifests.pod().init_containers.iter().flatten())
        {
            let security = container.security_context.as_ref().expect("a security context");
            assert_eq!(security.read_only_root_filesystem, Some(true), "{name}");
            assert_eq!(security.allow_privilege_escalation, Some(false), "{name}");
            let dropped = security.capabilities.as_ref().and_then(|all| all.drop.clone());
            assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{name}");
            let mut mounted = container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str());
            let volumes: BTreeSet<_> = manifests.pod().volumes.iter().flatten().map(|it| &*it.name).collect();
            assert_eq!(
                mounted.find(|mount| !volumes.contains(mount)),
                None,
                "{name}: each mount has a volume"
            );
        }
    }
}

/// Removal is the same object as the one that runs, so it takes its place.
#[test]
fn removal_replaces_what_runs() {
    let identity = |name: &str| {
        let Manifests { daemon_set, .. } = Manifests::render(name);
        let selector = daemon_set.spec.map(|spec| spec.selector);
        (daemon_set.metadata.name, daemon_set.metadata.namespace, selector)
    };
    assert_eq!(identity("base"), identity("remove"));
    assert_eq!(identity("base"), identity("secret"));
    let unload = Manifests::render("remove");
    assert_eq!(unload.container("unload").args, Some(vec!["unload".to_owned(), "--if-attached".to_owned()]));
}

/// Two controllers never run on a node at once, and the probes ask for health where metrics are served.
#[test]
fn an_update_ends_the_old_pod_first() {
    let manifests = Manifests::render("base");
    let update = manifests.daemon_set.spec.as_ref().and_then(|spec| spec.update_strategy.clone());
    let rolling = update.and_then(|update| update.rolling_update).expect("a rolling update");
    assert_eq!(rolling.max_surge, Some(IntOrString::Int(0)));
    let tfo = manifests.container("tfo");
    let port = tfo.ports.as_ref().and_then(|ports| ports.first()).expect("a port");
    let template = manifests.daemon_set.spec.as_ref().and_then(|spec| spec.template.metadata.clone());
    let annotations = template.and_then(|metadata| metadata.annotations).expect("annotations");
    assert_eq!(annotations["prometheus.io/port"], port.container_port.to_string());
    let args = tfo.args.clone().unwrap_or_default();
    assert!(args.contains(&format!("--metrics=$(HOST_IP):{}", port.container_port)), "{args:?}");
    for probe in [&tfo.startup_probe, &tfo.readiness_probe, &tfo.liveness_probe] {
        let http = probe.as_ref().and_then(|Probe { http_get, .. }| http_get.as_ref()).expect("a probe");
        assert_eq!(
            (http.path.as_deref(), &http.port),
            (Some("/healthz"), &IntOrString::String("metrics".into()))
        );
        assert_eq!(port.name.as_deref(), Some("metrics"));
    }
}

/// The configuration is valid, and its secret is where the volume is, for root alone.
#[test]
fn the_configuration_fits_the_mounts() {
    let secret = KeysFrom::Secret("/etc/tfo-secret/secret".to_owned());
    for (name, source) in [("base", KeysFrom::Kernel), ("secret", secret)] {
        let manifests = Manifests::render(name);
        let data = manifests.config.as_ref().and_then(|config| config.data.clone()).expect("a configuration");
        let Config { keys: Keys { source: found, .. }, .. } =
            Config::parse(data["tfo.toml"].as_bytes()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(found, source);
    }
    let manifests = Manifests::render("secret");
    let mut volumes = manifests.pod().volumes.iter().flatten();
    let Volume { secret, .. } = volumes.find(|volume| volume.name == "secret").expect("a secret");
    assert_eq!(secret.as_ref().and_then(|secret| secret.default_mode), Some(0o400));
    let mut mounts = manifests.container("tfo").volume_mounts.iter().flatten();
    let mount = mounts.find(|mount| mount.name == "secret").expect("it is mounted");
    assert_eq!((mount.mount_path.as_str(), &mount.sub_path), ("/etc/tfo-secret", &None));
}
