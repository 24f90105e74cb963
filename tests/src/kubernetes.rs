//! Manifests of `dist/kubernetes`, rendered as `kubectl apply --kustomize` does, and containers that run as they say.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Container, Namespace, PodSpec, Volume},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::{binary, eventually};

/// Objects of one folder of `dist/kubernetes`, in which no field is unknown to Kubernetes.
#[derive(Debug)]
pub struct Manifests {
    /// The DaemonSet.
    pub daemon_set: DaemonSet,
    /// The ConfigMap of the configuration, if there is one.
    pub config: Option<ConfigMap>,
    /// The namespace.
    pub namespace: Namespace,
}

impl Manifests {
    /// Renders the folder `name`.
    ///
    /// # Panics
    ///
    /// Panics unless kustomize takes it, it has one DaemonSet and one namespace, and each object is one that Kubernetes
    /// knows, without any field that it does not know.
    pub fn render(name: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder of the workspace");
        let kubectl = root.join("target/tools/bin/kubectl");
        assert!(kubectl.exists(), "{} is missing: run the tests by `cargo xtask test`", kubectl.display());
        let folder = root.join("dist/kubernetes").join(name);
        let output = Command::new(kubectl).arg("kustomize").arg(&folder).output().expect("kubectl starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{name}: {errors}");
        let text = String::from_utf8(output.stdout).expect("YAML is text");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("kustomize writes YAML");

        let (mut daemon_sets, mut configs, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
        for object in objects {
            match object["kind"].as_str() {
                Some("DaemonSet") => daemon_sets.push(strict(object)),
                Some("ConfigMap") => configs.push(strict(object)),
                Some("Namespace") => namespaces.push(strict(object)),
                other => panic!("{name}: {other:?} is not expected"),
            }
        }
        let [daemon_set, namespace] = [daemon_sets.len(), namespaces.len()];
        assert!(daemon_set == 1 && namespace == 1 && configs.len() < 2, "{name}");
        Self { daemon_set: daemon_sets.remove(0), config: configs.pop(), namespace: namespaces.remove(0) }
    }

    /// Returns the specification of the pods.
    pub fn pod(&self) -> &PodSpec {
        self.daemon_set.spec.as_ref().and_then(|set| set.template.spec.as_ref()).expect("pods")
    }

    /// Returns the container or the init container with this name.
    pub fn container(&self, name: &str) -> &Container {
        let pod = self.pod();
        let mut all = pod.containers.iter().chain(pod.init_containers.iter().flatten());
        all.find(|container| container.name == name).unwrap_or_else(|| panic!("there is no container {name}"))
    }
}

/// Reads an object. A field that Kubernetes does not know is lost in the type, and so is found.
fn strict<T: DeserializeOwned + Serialize>(object: Value) -> T {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    let again = serde_json::to_value(&typed).expect("it was JSON");
    assert_eq!(again, object, "a field is unknown or has another form (left: what Kubernetes understands)");
    typed
}

/// Image that `cargo xtask image` has made of the `tfo` under test, unpacked.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// Makes the image and unpacks it, in a folder beside `tfo` that the next call empties. So a test program can keep it
    /// in a static, which is never dropped.
    pub fn make() -> Self {
        let folder = binary().with_file_name("container");
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("the folder is ours");
        }
        fs::create_dir(&folder).expect("the folder of tfo is ours");
        let made = folder.join("image");
        let mut xtask = Command::new(binary().with_file_name("xtask"));
        succeed(xtask.arg("image").arg("--binary").arg(binary()).arg("--output").arg(&made));
        let image = format!("{}:tfo:{}", made.join("layout").display(), env!("CARGO_PKG_VERSION"));
        succeed(Command::new("umoci").args(["unpack", "--image", &image]).arg(folder.join("bundle")));
        Self { folder }
    }

    /// Returns the folder of its files.
    pub fn files(&self) -> PathBuf {
        self.folder.join("bundle/rootfs")
    }

    /// Returns the OCI configuration that an engine makes of the image.
    fn config(&self) -> Value {
        let text = fs::read(self.folder.join("bundle/config.json")).expect("umoci has unpacked it");
        serde_json::from_slice(&text).expect("JSON")
    }
}

/// Runs a command, which must succeed, and returns its output.
fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Container, as the kubelet and a runtime make it of a manifest, with crun. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    _bundle: TempDir,
}

/// Settings of a container that the manifest leaves to the cluster, and changes of a test.
#[derive(Debug, Default)]
pub struct Node<'a> {
    /// Content of the ConfigMap and of Secrets: folder of the volume, by its name.
    pub volumes: BTreeMap<&'a str, PathBuf>,
    /// Capability that is taken away.
    pub without: Option<&'a str>,
    /// More arguments.
    pub more: &'a [&'a str],
}

impl Running {
    /// Starts the container `name` of `manifests`, in the network namespace of the calling thread.
    ///
    /// # Panics
    ///
    /// Panics if the manifest asks for something that this does not do.
    pub fn start(image: &Image, manifests: &Manifests, name: &str, node: &Node<'_>) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let bundle = tempfile::tempdir().expect("a temporary folder");
        let config = specification(image, manifests, name, node);
        fs::write(bundle.path().join("config.json"), config.to_string()).expect("the folder is ours");
        let name = format!("tfo-{}-{number}", std::process::id());
        let mut crun = Command::new("crun");
        crun.args(["--cgroup-manager=disabled", "run", "--bundle"]).arg(bundle.path()).arg(&name);
        let crun = crun.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: crun.spawn().expect("crun is installed"), name, _bundle: bundle }
    }

    /// Runs `tfo ARGS` in the container.
    pub fn exec(&self, args: &[&str]) -> Output {
        let mut crun = Command::new("crun");
        crun.args(["--cgroup-manager=disabled", "exec", &self.name, "/usr/bin/tfo"]).args(args);
        crun.stdin(Stdio::null()).output().expect("crun is installed")
    }

    /// Returns whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Sends SIGTERM to its process, as the kubelet does, waits for the end and returns the log. Panics unless it ends
    /// with status 0.
    pub fn terminate(self) -> String {
        succeed(Command::new("crun").args(["kill", &self.name, "TERM"]));
        let (code, log) = self.wait();
        assert_eq!(code, Some(0), "{log}");
        log
    }

    /// Waits for its end, and returns its exit status and all that it has written.
    pub fn wait(mut self) -> (Option<i32>, String) {
        eventually("the container ends", || !self.is_running());
        let status = self.child.wait().expect("a child ends");
        let mut log = String::new();
        for pipe in [
            self.child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>),
            self.child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>),
        ] {
            pipe.expect("piped").read_to_string(&mut log).expect("it writes text");
        }
        assert_eq!(status.signal(), None, "{log}");
        (status.code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _: std::io::Result<Output> =
                Command::new("crun").args(["delete", "--force", &self.name]).output();
            // crun ends with its container.
            let _: nix::Result<()> = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        }
        let _: std::io::Result<_> = self.child.wait();
    }
}

/// Makes a volume as the kubelet does: each file is a link through `..data`, so that all change at once.
pub fn volume(folder: &Path, mode: u32, files: &[(&str, &[u8])]) {
    let data = folder.join("..2026");
    fs::create_dir_all(&data).expect("the folder is ours");
    symlink("..2026", folder.join("..data")).expect("the folder is ours");
    for (name, content) in files {
        let file = data.join(name);
        fs::write(&file, content).expect("the folder is ours");
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("the file is ours");
        symlink(Path::new("..data").join(name), folder.join(name)).expect("the folder is ours");
    }
}

/// Returns the OCI configuration of the container `name`: the image's, with what the manifest says.
fn specification(image: &Image, manifests: &Manifests, name: &str, node: &Node<'_>) -> Value {
    let (pod, container) = (manifests.pod(), manifests.container(name));
    let security = container.security_context.as_ref().expect("a security context");
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!((security.privileged, pod.host_network), (Some(false), Some(true)));
    let add = capabilities.add.iter().flatten().filter(|name| Some(name.as_str()) != node.without);
    let add: Vec<_> = add.map(|name| format!("CAP_{name}")).collect();

    let mut config = image.config();
    config["root"] = json!({
        "path": image.files(), "readonly": security.read_only_root_filesystem.expect("it is said"),
    });
    let process = &mut config["process"];
    process["args"] = [&process["args"][0]].into_iter().cloned().chain(arguments(container, node)).collect();
    process["user"] = json!({"uid": security.run_as_user, "gid": security.run_as_group});
    process["noNewPrivileges"] = json!(!security.allow_privilege_escalation.expect("it is said"));
    process["capabilities"] = json!({"bounding": add, "effective": add, "permitted": add});
    process["terminal"] = json!(false);
    // Kubernetes sets none.
    process.as_object_mut().expect("an object").remove("rlimits");
    let list = |value: &mut Value| std::mem::take(value).as_array().cloned().expect("a list");
    config["linux"]["namespaces"] = list(&mut config["linux"]["namespaces"])
        .into_iter()
        .filter(|namespace| namespace["type"] != "network")
        .collect();
    let volumes = pod.volumes.iter().flatten();
    let mounts = container.volume_mounts.iter().flatten().map(|mount| {
        let mut volumes = volumes.clone();
        let volume = volumes.find(|volume| volume.name == mount.name).expect("each mount has a volume");
        let access = if mount.read_only == Some(true) { "ro" } else { "rw" };
        json!({
            "destination": mount.mount_path, "source": source(volume, node), "type": "bind",
            "options": ["rbind", access],
        })
    });
    config["mounts"] = list(&mut config["mounts"])
        .into_iter()
        // The part of the hierarchy that is the container's own; there is none, since crun makes no cgroup here.
        .filter(|mount| mount["type"] != "cgroup")
        .chain(mounts)
        .collect();
    config
}

/// Returns the folder of the node that is `volume`.
fn source(volume: &Volume, node: &Node<'_>) -> PathBuf {
    if let Some(path) = &volume.host_path {
        if path.type_.as_deref() == Some("DirectoryOrCreate") {
            fs::create_dir_all(&path.path).expect("root may make it");
        }
        return PathBuf::from(&path.path);
    }
    let given = node.volumes.get(volume.name.as_str());
    given.unwrap_or_else(|| panic!("the volume {} is given", volume.name)).clone()
}

/// Returns the arguments of a container, with the variables that it names.
fn arguments(container: &Container, node: &Node<'_>) -> Vec<Value> {
    let variables = container.env.iter().flatten().map(|variable| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        assert_eq!(field.map(|field| field.field_path.as_str()), Some("status.hostIP"), "{variable:?}");
        (format!("$({})", variable.name), "127.0.0.1")
    });
    let variables: Vec<_> = variables.collect();
    let given = container.args.iter().flatten().map(|argument| {
        variables.iter().fold(argument.clone(), |text, (name, value)| text.replace(name, value))
    });
    given.chain(node.more.iter().map(|&argument| argument.to_owned())).map(Value::from).collect()
}
