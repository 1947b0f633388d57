//! Plugins of the CNI project behind Fairlead, before it, and below it for addresses.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::{Listener, Outcome, connect};
use serde_json::{Value, json};

use crate::{Lab, addresses};

const LIMIT: Duration = Duration::from_secs(10);
/// Bits per second.
const RATE: u64 = 4_000_000;
/// Bits.
const BURST: u64 = 400_000;
/// Bytes of a datagram's payload.
const PAYLOAD: usize = 1000;
/// Datagrams sent: four seconds' worth at [`RATE`].
const DATAGRAMS: usize = 2000;

/// Sends datagrams as fast as the kernel takes them; bytes of payload that arrived, and within how long.
async fn flood(from: &Namespace, to: &Namespace, address: SocketAddr) -> (u64, Duration) {
    let receiver = to.run(move || std::net::UdpSocket::bind(address)).await.unwrap().unwrap();
    let start = Instant::now();
    let sent = from.run(move || {
        let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let sender = std::net::UdpSocket::bind(any)?;
        for _ in 0..DATAGRAMS {
            match sender.send_to(&[7; PAYLOAD], address) {
                // The shaper's own answer to who sends too fast.
                Err(e) if e.raw_os_error() != Some(105) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    });
    let received = std::thread::spawn(move || {
        receiver.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let (mut bytes, mut last) = (0, Duration::ZERO);
        let mut buffer = [0; 2 * PAYLOAD];
        while let Ok(n) = receiver.recv(&mut buffer) {
            bytes += n as u64;
            last = start.elapsed();
        }
        (bytes, last)
    });
    sent.await.unwrap().unwrap();
    tokio::task::spawn_blocking(|| received.join().unwrap()).await.unwrap()
}

/// The token bucket of an interface of the node: packets it has let through, and refused.
async fn bucket(lab: &Lab, interface: &str) -> (u64, u64) {
    let text = lab.node_says(&format!("tc -s -j qdisc show dev {interface}")).await;
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let tbf = all.iter().find(|q| q["kind"] == "tbf").unwrap_or_else(|| unreachable!("no tbf: {text}"));
    (tbf["packets"].as_u64().unwrap(), tbf["drops"].as_u64().unwrap())
}

#[tokio::test]
async fn bandwidth_holds_in_both_directions() {
    let Some(lab) = Lab::new(&["portmap", "bandwidth"]).await else { return };
    let (free, shaped) = (Namespace::new("free").await.unwrap(), Namespace::new("shaped").await.unwrap());
    let limits = json!({"bandwidth": {
        "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
    }});
    let open = lab.cnitool("add", "fairlead", &free, &json!({})).await.success();
    let bound = lab.cnitool("add", "fairlead", &shaped, &limits).await.success();
    // Debian's plugins speak nothing newer.
    assert_eq!(bound["cniVersion"], "1.0.0");
    lab.cnitool("check", "fairlead", &shaped, &limits).await.success();
    let host = bound["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let ifb = lab.interfaces().await.into_iter().find(|n| n.starts_with("bwp")).unwrap();
    for family in [0, 1] {
        let of = |result: &Value| SocketAddr::new(addresses(result)[family].parse().unwrap(), 9);
        for (from, to, address, interface) in
            [(&free, &shaped, of(&bound), host.as_str()), (&shaped, &free, of(&open), ifb.as_str())]
        {
            let before = bucket(&lab, interface).await;
            let (bytes, took) = flood(from, to, address).await;
            let after = bucket(&lab, interface).await;
            // All that arrived went through the bucket, and the bucket refused the rest.
            let packets = bytes / PAYLOAD as u64;
            assert!(packets > 0, "{interface}: nothing arrives");
            assert!(after.0 - before.0 >= packets, "{interface}: {packets} arrived, {before:?} {after:?}");
            assert!(after.1 > before.1, "{interface}: refused nothing");
            // However slow this machine is, what arrives cannot be more than the bucket gives.
            let most = (BURST + (RATE as f64 * took.as_secs_f64()) as u64) / 8;
            assert!(bytes <= most + most / 4, "{interface}: {bytes} bytes in {took:?}, {most} allowed");
            println!(
                "{interface}: {:.2} Mbit/s of {}",
                bytes as f64 * 8e-6 / took.as_secs_f64(),
                RATE / 1_000_000
            );
        }
    }
    lab.cnitool("del", "fairlead", &shaped, &limits).await.success();
    lab.cnitool("del", "fairlead", &free, &json!({})).await.success();
    assert_eq!(lab.interfaces().await, [""; 0]);
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod() {
    let Some(lab) = Lab::new(&["portmap"]).await else { return };
    let pod = Namespace::new("pod").await.unwrap();
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    lab.cnitool("add", "fairlead", &pod, &ports).await.success();
    // No CHECK: portmap 1.1.1 looks for the rules of IPv4 in those of IPv6, and never finds them.
    let _listener = Listener::open(&pod, "pod", 80).await.unwrap();
    for node in ["172.20.0.11", "fd20::11"] {
        let to = SocketAddr::new(node.parse().unwrap(), 8080);
        let outcome = connect(lab.cluster.outside(), to, LIMIT).await.unwrap();
        assert!(matches!(&outcome, Outcome::Open(c) if c.server == "pod"), "{to}: {outcome:?}");
    }
    lab.cnitool("del", "fairlead", &pod, &ports).await.success();
    assert_eq!(lab.interfaces().await, [""; 0]);
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn tuning_comes_after_and_check_bears_with_it() {
    let Some(lab) = Lab::new(&["tuning"]).await else { return };
    let tuning = json!({"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "517"}});
    lab.network("tuned", &json!([lab.fairlead(&json!({})), tuning]));
    let pod = Namespace::new("pod").await.unwrap();
    lab.cnitool("add", "tuned", &pod, &json!({})).await.success();
    assert!(crate::run(&pod, "ip link show eth0").await.contains("mtu 1400"));
    let read = pod.run(|| std::fs::read_to_string("/proc/sys/net/core/somaxconn")).await.unwrap().unwrap();
    assert_eq!(read.trim(), "517");
    lab.cnitool("check", "tuned", &pod, &json!({})).await.success();
    lab.cnitool("del", "tuned", &pod, &json!({})).await.success();
    assert_eq!(lab.interfaces().await, [""; 0]);
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn fairlead_passes_on_what_a_plugin_before_it_made() {
    let Some(lab) = Lab::new(&["loopback"]).await else { return };
    lab.network("second", &json!([{"type": "loopback"}, lab.fairlead(&json!({}))]));
    let pod = Namespace::new("pod").await.unwrap();
    let result = lab.cnitool("add", "second", &pod, &json!({})).await.success();
    let names: Vec<&str> =
        result["interfaces"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!((names[0], names.last()), ("lo", Some(&"eth0")));
    let ip = result["ips"].as_array().unwrap().iter().find(|ip| ip["address"] == "10.244.1.2/32").unwrap();
    assert_eq!(names[ip["interface"].as_u64().unwrap() as usize], "eth0");
    assert!(addresses(&result).contains(&"127.0.0.1".to_owned()));
    lab.cnitool("check", "second", &pod, &json!({})).await.success();
    lab.cnitool("del", "second", &pod, &json!({})).await.success();
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn addresses_come_from_host_local_or_static() {
    let Some(lab) = Lab::new(&["host-local", "static"]).await else { return };
    let store = tempfile::tempdir().unwrap();
    let local = json!({"ipam": {
        "type": "host-local", "dataDir": store.path(),
        "ranges": [[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd09::/64"}]],
    }});
    let fixed = json!({"ipam": {"type": "static", "addresses": [{"address": "10.9.1.5/24"}]}});
    lab.network("local", &json!([lab.fairlead(&local)]));
    lab.network("fixed", &json!([lab.fairlead(&fixed)]));
    let (a, b) = (Namespace::new("a").await.unwrap(), Namespace::new("b").await.unwrap());
    let none = json!({});
    let result = lab.cnitool("add", "local", &a, &none).await.success();
    assert_eq!(addresses(&result), ["10.9.0.2", "fd09::2"]);
    let result = lab.cnitool("add", "fixed", &b, &none).await.success();
    assert_eq!(addresses(&result), ["10.9.1.5"]);
    let _listener = Listener::open(&a, "a", 80).await.unwrap();
    let to = SocketAddr::new("10.9.0.2".parse().unwrap(), 80);
    assert!(matches!(connect(&b, to, LIMIT).await.unwrap(), Outcome::Open(_)));
    lab.cnitool("check", "local", &a, &none).await.success();
    lab.cnitool("check", "fixed", &b, &none).await.success();
    let held = |address: &str| store.path().join("local").join(address).exists();
    assert!(held("10.9.0.2") && held("fd09::2"));
    lab.cnitool("del", "local", &a, &none).await.success();
    lab.cnitool("del", "fixed", &b, &none).await.success();
    assert!(!held("10.9.0.2") && !held("fd09::2"));
    assert_eq!(lab.interfaces().await, [""; 0]);
    lab.cluster.stop().await.unwrap();
}
