//! Echo server of a Rust program that knows nothing of Fast Open, for `netns::enable`: `echo ADDRESS:PORT`.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).ok_or_else(|| io::Error::other("give an address and a port"))?;
    let listener = TcpListener::bind(address)?;
    println!("listens");
    for connection in listener.incoming() {
        let connection = connection?;
        // A client that goes away is no failure of the server.
        thread::spawn(move || echo(connection).unwrap_or_default());
    }
    Ok(())
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            read => connection.write_all(&buffer[..read])?,
        }
    }
}
