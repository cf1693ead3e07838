// SPDX-License-Identifier: GPL-2.0-or-later
//! Good and bad clients of real sockets.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use control_socket::{Answer, Call, Device, MAX_REQUEST, Queue, Reply, Request, Settings};

use super::*;
use crate::keys::{Node, Type};
use crate::registry::Status;
use crate::stats::Stats;

/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory for a socket, which may be in a directory of its own.
struct Place {
    root: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("vxb-ctl-{}-{name}", std::process::id()));
        fs::create_dir(&root).unwrap();
        Self { root }
    }

    fn path(&self) -> PathBuf {
        self.root.join("run/control.sock")
    }

    fn bind(&self) -> Result<Server> {
        Server::bind(SocketPath(self.path()))
    }

    fn error(&self) -> String {
        format!("{:#}", self.bind().err().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).unwrap();
    }
}

/// A server with a disk of "web", domain 5, and a card of "db", domain 6.
struct Running {
    place: Place,
    stats: Arc<Stats>,
    _server: Server,
}

impl Running {
    fn new(name: &str) -> Self {
        let place = Place::new(name);
        let registry = Arc::<Registry>::default();
        let stats = Arc::<Stats>::default();
        for (domain, name, kind) in [(5, "web", Type::Disk), (6, "db", Type::Virtio)] {
            let device = Device {
                domain,
                name: name.into(),
                r#type: kind.name().into(),
                state: "Connected".into(),
                ..Device::default()
            };
            let node = Node {
                domain,
                kind,
                number: 0,
            };
            let queues = vec![(Queue::default(), Arc::clone(&stats))];
            registry.publish(node, Status { device, queues });
        }
        let server = place.bind().unwrap();
        server.start(registry).unwrap();
        Self {
            place,
            stats,
            _server: server,
        }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.place.path()).unwrap();
        Client::new(stream)
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Answer {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        Reply::parse(&line).unwrap().answer
    }

    fn ask(&mut self, request: Request) -> Answer {
        let line = control_socket::line(&Call::new(request)).unwrap();
        // A server that does not serve us says so without having read.
        if let Err(error) = self.0.get_mut().write_all(&line) {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        }
        self.receive()
    }

    fn list(&mut self) -> Vec<Device> {
        match self.ask(Request::List) {
            Answer::Devices(devices) => devices,
            other => panic!("{other:?}"),
        }
    }

    fn error(&mut self) -> String {
        match self.receive() {
            Answer::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the server has hung up, with nothing more to read.
    fn is_over(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            // It has not read all that we have sent.
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn show(domain: &str, device: Option<&str>) -> Request {
    Request::Show {
        domain: domain.into(),
        device: device.map(Into::into),
    }
}

#[test]
fn socket_is_for_root_and_goes_with_the_daemon() {
    let place = Place::new("mode");
    let server = place.bind().unwrap();
    let mode = fs::metadata(place.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(server);
    assert!(!place.path().exists());
}

#[test]
fn socket_of_a_dead_daemon_is_replaced_and_that_of_a_living_one_is_not() {
    let place = Place::new("stale");
    drop(place.bind().unwrap());
    // A listener that is dropped leaves its socket, as a daemon that is killed does.
    let listener = UnixListener::bind(place.path()).unwrap();
    let error = place.error();
    assert!(
        error.contains("control.sock") && error.contains("listens"),
        "{error}"
    );
    drop(listener);
    assert!(place.path().exists());
    drop(place.bind().unwrap());

    fs::write(place.path(), "precious").unwrap();
    let error = place.error();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(place.path()).unwrap(), "precious");
}

#[test]
fn paths_are_checked() {
    assert!("/run/x.sock".parse::<SocketPath>().is_ok());
    for bad in ["", "x.sock", "/a\0b", &format!("/{}", "x".repeat(MAX_PATH))] {
        let error = bad.parse::<SocketPath>().unwrap_err();
        assert!(error.contains(&format!("{bad:?}")), "{error}");
    }
}

#[test]
fn devices_are_listed_with_the_counters_of_now() {
    let running = Running::new("list");
    let mut client = running.connect();
    let devices = client.list();
    let ids: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.id())).collect();
    assert_eq!(
        ids,
        [("web", "virtio_disk/0".into()), ("db", "virtio/0".into())]
    );
    assert_eq!(devices[0].total().requests, Some(0));
    running.stats.requests.add(7);
    assert_eq!(client.list()[0].total().requests, Some(7));
}

#[test]
fn one_device_is_shown_by_name_or_number() {
    let running = Running::new("show");
    let mut client = running.connect();
    for (domain, device) in [
        ("db", None),
        ("6", None),
        ("db", Some("virtio/0")),
        ("6", Some("virtio/0")),
    ] {
        match client.ask(show(domain, device)) {
            Answer::Devices(devices) => assert_eq!(devices[0].name, "db"),
            other => panic!("{other:?}"),
        }
    }
    for (domain, device, named) in [
        ("mail", None, "\"mail\""),
        ("06", None, "\"06\""),
        ("db", Some("virtio/1"), "\"virtio/1\""),
    ] {
        match client.ask(show(domain, device)) {
            Answer::Error(error) => assert!(error.contains(named), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bad_requests_are_answered_and_the_client_goes_on() {
    let running = Running::new("bad");
    let mut client = running.connect();
    for (line, named) in [
        (&b"\n"[..], "JSON"),
        (b"list\n", "JSON"),
        (b"\xff\xfe\n", "JSON"),
        (b"{\"version\":9,\"request\":\"list\"}\n", "version 9"),
        (b"{\"version\":1,\"request\":\"dance\"}\n", "`dance`"),
        (&[&[b'['; 4000][..], b"\n"].concat(), "JSON"),
    ] {
        client.send(line);
        let error = client.error();
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(client.list().len(), 2);
}

#[test]
fn settings_are_checked_before_anything_is_done() {
    let running = Running::new("settings");
    let mut client = running.connect();
    for (settings, named) in [
        (r#"{"net":{"brigde":"br0"}}"#, &["`brigde`", "`bridge`"][..]),
        (
            r#"{"net":{"bridge":"br0","mac":"00:16:3e:zz:00:01"}}"#,
            &["00:16:3e:zz:00:01"],
        ),
        (r#"{"net":{"bridge":"br0","mtu":67}}"#, &["67", "MTU"]),
        (r#"{"blk":{"path":"/a","queues":17}}"#, &["17", "queues"]),
        (r#"{"blk":{"serial":"a"}}"#, &["`path`"]),
    ] {
        let device: Settings = serde_json::from_str(settings).unwrap();
        let request = Request::Attach {
            domain: "web".into(),
            device,
            timeout: 1,
        };
        match client.ask(request) {
            Answer::Error(error) => {
                for name in named {
                    assert!(error.contains(name), "{error}");
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn requests_may_come_in_pieces_and_together() {
    let running = Running::new("pieces");
    let mut client = running.connect();
    let line = control_socket::line(&Call::new(Request::List)).unwrap();
    for byte in &line {
        client.send(&[*byte]);
    }
    client.send(&[line.clone(), line.clone(), line].concat());
    for _ in 0..4 {
        assert!(matches!(client.receive(), Answer::Devices(_)));
    }
}

#[test]
fn request_without_end_is_cut_off() {
    let running = Running::new("long");
    for len in [MAX_REQUEST, MAX_REQUEST + 1] {
        let mut client = running.connect();
        client.send(&vec![b'x'; len]);
        let error = client.error();
        assert!(error.contains(&MAX_REQUEST.to_string()), "{error}");
        assert!(client.is_over());
    }
    // The longest one that is allowed.
    let mut client = running.connect();
    let mut line = vec![b' '; MAX_REQUEST];
    line[MAX_REQUEST - 1] = b'\n';
    client.send(&line);
    assert!(client.error().contains("JSON"));
}

#[test]
fn slow_client_is_cut_off() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || {
        let service = Service::new(Arc::default());
        client::serve(&theirs, &service, Duration::from_millis(50));
    });
    let mut client = Client::new(ours);
    let start = Instant::now();
    // Each byte comes in time, the line does not.
    while !served.is_finished() && start.elapsed() < PATIENCE {
        let _ = client.0.get_mut().write_all(b" ");
        thread::sleep(Duration::from_millis(1));
    }
    served.join().unwrap();
    assert!(client.error().contains("within 0.05 s"));
}

#[test]
fn client_that_does_not_read_keeps_nobody_waiting() {
    let running = Running::new("deaf");
    let deaf = running.connect();
    let mut stream = deaf.0.get_ref();
    stream.set_nonblocking(true).unwrap();
    let line = control_socket::line(&Call::new(Request::List)).unwrap();
    // Until neither requests nor answers find room any more.
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        let _ = stream.write(&line);
    }
    assert_eq!(running.connect().list().len(), 2);
}

#[test]
fn clients_are_limited() {
    let running = Running::new("many");
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| running.connect()).collect();
    assert!(clients.iter_mut().all(|client| client.list().len() == 2));
    let mut late = running.connect();
    let error = late.error();
    assert!(error.contains(&MAX_CLIENTS.to_string()), "{error}");
    assert!(late.is_over());

    drop(clients);
    let deadline = Instant::now() + PATIENCE;
    while let Answer::Error(error) = running.connect().ask(Request::List) {
        assert!(Instant::now() < deadline, "{error}");
    }
}
