//! Datagrams in fragments, put together by the node's connection tracking and taken apart again after it has
//! masqueraded them to the node's own address: they are not the node's own traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_tests::cluster::SOON;
use fairlead_tests::datagram::connected;
use fairlead_tests::proxy::{Mode, Protocol};
use fairlead_tests::wait::await_until;

use crate::scene::{SERVED, Scene};
use crate::table::{Client, Direction, Peer, Policy, Target};

/// Three fragments on any way here.
const SIZE: usize = 4000;
/// How long to wait for an answer before the datagram is sent again.
const ANSWER: Duration = Duration::from_millis(300);
/// The pod behind the Service, on the node that masquerades.
const BACKEND: &str = "a2";

async fn exempt(mode: Mode) {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut scene = Scene::start(mode).await;
    let nobody = [Policy { subject: BACKEND, direction: Direction::Ingress, peer: Peer::Nobody }];
    for ipv6 in [false, true] {
        let client = scene.address(&Client::Outside, ipv6);
        let to = scene.socket(&Target::NodePort("node-a", "local"), SERVED, Protocol::Udp, ipv6);
        let node = scene.node_address("node-a", ipv6);
        let answer = format!("{BACKEND} {node}\n");
        let mut buffer = [0; 128];

        // Routers take no IPv6 datagram apart that came in larger fragments: the client learns the path's MTU.
        let socket = connected(scene.cluster.outside(), Some(client), to).await.unwrap();
        await_until("whole", SOON, async || {
            socket.send(&[b'x'; SIZE]).await?;
            let answered = tokio::time::timeout(ANSWER, socket.recv(&mut buffer)).await;
            Ok(answered.is_ok_and(|length| length.is_ok_and(|length| &buffer[..length] == answer.as_bytes())))
        })
        .await
        .unwrap();

        let socket = connected(scene.cluster.outside(), Some(client), to).await.unwrap();
        scene.enforce(&nobody).await;
        let before = scene.drops().await;
        socket.send(&[b'x'; SIZE]).await.unwrap();
        let denied = BTreeMap::from([((BACKEND.to_owned(), "ingress", "ingress_denied".to_owned()), 1)]);
        await_until("dropped", SOON, async || Ok(!scene.drops().await.since(&before).is_empty()))
            .await
            .unwrap();
        // The kernel gives up the others when the first fragment is dropped.
        assert_eq!(scene.drops().await.since(&before), denied, "IPv6 {ipv6}");

        // The same without the policy arrives whole, under the node's address; the first is not answered.
        scene.release(&nobody).await;
        let before = scene.drops().await;
        socket.send(&[b'x'; SIZE]).await.unwrap();
        let length = tokio::time::timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], answer.as_bytes());
        assert!(socket.try_recv(&mut buffer).is_err());
        assert!(scene.drops().await.since(&before).is_empty());
    }
    scene.stop().await;
}

#[tokio::test]
async fn refragmented_and_masqueraded_is_not_the_nodes_own_in_iptables_mode() {
    exempt(Mode::Iptables).await;
}

#[tokio::test]
async fn refragmented_and_masqueraded_is_not_the_nodes_own_in_nftables_mode() {
    exempt(Mode::Nftables).await;
}
