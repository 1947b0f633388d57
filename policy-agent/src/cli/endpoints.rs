//! `fairlead endpoints`.

use std::io::{self, Write};

use fairlead_api::EndpointStatus;
use serde::Deserialize as _;

use super::print::{addresses, drops, isolated, pod, table};
use super::{Answer, Asking};

pub(super) fn run(asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    let value = asking.get("/v1/endpoints")?;
    let endpoints = Vec::<EndpointStatus>::deserialize(&value)?;
    let printed = asking.print(out, &value, |out| print(out, &endpoints));
    Ok(Answer { code: 0, printed })
}

fn print(out: &mut impl Write, endpoints: &[EndpointStatus]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = endpoints
        .iter()
        .map(|e| {
            let (ingress, egress) = (&e.counters.ingress, &e.counters.egress);
            vec![
                pod(e),
                addresses(e),
                isolated(e).to_owned(),
                if e.fast_path { "fast" } else { "stack" }.to_owned(),
                e.attachment.host_ifname.clone(),
                e.slot.to_string(),
                ingress.packets.to_string(),
                drops(ingress).to_string(),
                egress.packets.to_string(),
                drops(egress).to_string(),
                e.attachment.container_id.chars().take(12).collect(),
            ]
        })
        .collect();
    let head = [
        "POD",
        "ADDRESSES",
        "ISOLATED",
        "PATH",
        "INTERFACE",
        "SLOT",
        "IN",
        "DROPPED",
        "OUT",
        "DROPPED",
        "CONTAINER",
    ];
    table(out, &head, &rows)
}
