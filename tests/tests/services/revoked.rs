//! A permission is taken away while only the server sends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use fairlead_tests::cluster::SOON;
use fairlead_tests::datagram::{bound, connected};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::proxy::{Mode, Protocol};
use fairlead_tests::wait::await_until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::scene::{PUSHED, Scene, TARGET};
use crate::table::{Client, Direction, Peer, Policy, Target};

/// The ways to a Service, and the pod behind it.
const WAYS: [(Target, &str); 4] = [
    (Target::ClusterIp("local"), "a2"),
    (Target::ClusterIp("remote"), "b1"),
    (Target::NodePort("node-a", "local"), "a2"),
    (Target::Balancer("remote"), "b1"),
];

/// Both ends of a flow.
enum Flow {
    Tcp { client: TcpStream, server: TcpStream },
    Udp { client: UdpSocket, server: Rc<UdpSocket>, peer: SocketAddr },
}

impl Flow {
    /// The server sends, unasked.
    async fn push(&mut self) {
        match self {
            Self::Tcp { server, .. } => server.write_all(b"x").await.unwrap(),
            Self::Udp { server, peer, .. } => drop(server.send_to(b"x", *peer).await.unwrap()),
        }
    }

    /// The client gets it.
    async fn arrives(&mut self) {
        let mut byte = [0];
        let arrives = async {
            match self {
                Self::Tcp { client, .. } => drop(client.read_exact(&mut byte).await.unwrap()),
                Self::Udp { client, .. } => drop(client.recv(&mut byte).await.unwrap()),
            }
        };
        tokio::time::timeout(SOON, arrives).await.unwrap();
    }

    /// Whether the client has got anything.
    fn has_something(&self) -> bool {
        let mut byte = [0];
        match self {
            Self::Tcp { client, .. } => client.try_read(&mut byte).is_ok(),
            Self::Udp { client, .. } => client.try_recv(&mut byte).is_ok(),
        }
    }
}

/// The server's end on a pod: what the clients meet at the backend's port.
struct Servers {
    listener: TcpListener,
    socket: Rc<UdpSocket>,
}

impl Servers {
    async fn open(pod: &Namespace) -> Self {
        let address = SocketAddr::from(([0_u16; 8], PUSHED + TARGET));
        let listen = move || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            std::io::Result::Ok(listener)
        };
        let listener = TcpListener::from_std(pod.run(listen).await.unwrap().unwrap()).unwrap();
        Self { listener, socket: bound(pod, address).await.unwrap().into() }
    }

    /// A client opens a flow; for UDP by a datagram.
    async fn flow(&self, client: &Namespace, to: SocketAddr, protocol: Protocol) -> Flow {
        match protocol {
            Protocol::Tcp => {
                let new = move || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
                let socket = client.run(new).await.unwrap().unwrap();
                let (client, accepted) = tokio::join!(socket.connect(to), self.listener.accept());
                Flow::Tcp { client: client.unwrap(), server: accepted.unwrap().0 }
            }
            Protocol::Udp => {
                let client = connected(client, None, to).await.unwrap();
                client.send(b"x").await.unwrap();
                let (_, peer) = self.socket.recv_from(&mut [0]).await.unwrap();
                Flow::Udp { client, server: self.socket.clone(), peer }
            }
        }
    }
}

/// Flows of a protocol from a pod, each way to a Service in both families, in use.
async fn flows(
    scene: &Scene,
    servers: &BTreeMap<&str, Servers>,
    pod: &'static str,
    protocol: Protocol,
) -> Vec<Flow> {
    let mut flows = Vec::new();
    for ipv6 in [false, true] {
        for (way, server) in WAYS {
            let to = scene.socket(&way, PUSHED, protocol, ipv6);
            let open = servers[server].flow(scene.namespace(&Client::Pod(pod)), to, protocol);
            let mut flow = tokio::time::timeout(SOON, open).await.unwrap();
            flow.push().await;
            flow.arrives().await;
            flows.push(flow);
        }
    }
    flows
}

#[tokio::test]
async fn answers_of_a_revoked_flow_through_a_service_end_and_others_go_on() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut scene = Scene::start(Mode::Iptables).await;
    let mut servers = BTreeMap::new();
    for pod in ["a2", "b1"] {
        servers.insert(pod, Servers::open(scene.namespace(&Client::Pod(pod))).await);
    }
    let mut kept = flows(&scene, &servers, "a3", Protocol::Tcp).await;
    kept.extend(flows(&scene, &servers, "a3", Protocol::Udp).await);
    let mut datagrams = flows(&scene, &servers, "a1", Protocol::Udp).await;
    let mut streams = flows(&scene, &servers, "a1", Protocol::Tcp).await;
    let all_pods = Peer::Blocks(["10.244.0.0/16", "fd10:244::/48"]);
    let egress = |subject, peer| Policy { subject, direction: Direction::Egress, peer };
    scene.enforce(&[egress("a1", Peer::Nobody), egress("a3", all_pods)]).await;

    let key = ("a1".to_owned(), "egress", "flow_revoked".to_owned());
    // Each answer is dropped, not only the first.
    for round in 0..2 {
        for (i, flow) in datagrams.iter_mut().enumerate() {
            let before = scene.drops().await;
            flow.push().await;
            let dropped = async || Ok(!scene.drops().await.since(&before).is_empty());
            await_until(&format!("datagram {i} dropped, round {round}"), SOON, dropped).await.unwrap();
            assert_eq!(scene.drops().await.since(&before), BTreeMap::from([(key.clone(), 1)]), "{i}");
            assert!(!flow.has_something(), "{i}");
        }
    }
    let before = scene.drops().await;
    for flow in &mut streams {
        flow.push().await;
    }
    // TCP sends again what is not acknowledged.
    let sent = u64::try_from(streams.len()).unwrap();
    let dropped = async || {
        let dropped = scene.drops().await.since(&before);
        Ok(dropped.keys().eq([&key]) && dropped.values().all(|n| *n >= 2 * sent))
    };
    await_until("segments dropped", SOON, dropped).await.unwrap();
    assert!(!streams.iter().any(Flow::has_something));
    for flow in &mut kept {
        flow.push().await;
        flow.arrives().await;
    }
    println!("cases: {}", kept.len() + datagrams.len() + streams.len());
    scene.stop().await;
}
