//! Servers that know nothing of Fast Open, each a process of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// Echo server in Python. It serves one client after another.
const PYTHON: &str = r#"
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, port), family=family)
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        try:
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            pass
"#;

/// Echo server in JavaScript, for Node.js.
const NODE: &str = r#"
const [address, port] = process.argv.slice(-2);
const server = require("net").createServer({ allowHalfOpen: true }, (connection) => {
  connection.on("error", () => {});
  connection.pipe(connection);
});
server.listen({ host: address, port: Number(port) }, () => console.log("listens"));
"#;

/// Echo server that is killed when dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts one in Python.
    pub fn python(address: SocketAddr) -> Self {
        let ip = address.ip().to_string();
        Self::start(Command::new("python3").args(["-c", PYTHON, &ip, &address.port().to_string()]))
    }

    /// Starts one in Python for a user without privileges.
    pub fn python_as(user: u32, address: SocketAddr) -> Self {
        let (ip, port, user) = (address.ip().to_string(), address.port().to_string(), user.to_string());
        let who = ["--reuid", &user, "--regid", &user, "--clear-groups", "python3", "-c", PYTHON];
        // Debian's Python: one of root's own could not be read.
        Self::start(Command::new("setpriv").env("PATH", "/usr/bin:/bin").args(who).args([ip, port]))
    }

    /// Starts one in JavaScript.
    pub fn node(address: SocketAddr) -> Self {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        Self::start(Command::new("node").args(["-e", NODE, "--", &ip, &port]))
    }

    /// Starts one in Rust: `path` is that of the program `echo` of this crate.
    pub fn rust(path: &str, address: SocketAddr) -> Self {
        Self::start(Command::new(path).arg(address.to_string()))
    }

    /// Starts `command`, and waits until it listens.
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("it can be read");
        let program = Self(child);
        assert_eq!(line, "listens\n", "{command:?}");
        program
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().expect("it runs until it is killed");
        self.0.wait().expect("it ends");
    }
}
