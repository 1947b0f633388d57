//! The CNI plugin beside Debian's `ptp` and `bridge` with host-local: whole processes, from spawn to
//! exit, dual-stack, each plugin in a node of its own; Fairlead's with an agent and policies in force
//! that select the pod.

mod allocation;
mod contender;
mod lab;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::Settings;
use crate::plot::{self, Bar};
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};
use lab::Lab;

/// ADDs at once.
const ADDS: usize = 30;
/// DELs at once.
const DELS: usize = 50;
/// Time for what the kernel does after a link is gone, so that it is not measured with the next one.
const REST: Duration = Duration::from_millis(25);

/// What was measured of one contender, in milliseconds, round by round.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
    gone: Vec<f64>,
}

/// What was measured with many at once.
#[derive(Default)]
struct Crowd {
    add: Vec<f64>,
    del: Vec<f64>,
    gone: Vec<f64>,
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 100 } else { 50 }) as usize;
    let crowds = if settings.full { 10 } else { 5 };
    let mut lab = Lab::start(DELS).await?;
    let mut alone: [Times; lab::CONTENDERS] = Default::default();
    let mut steps: BTreeMap<&str, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for round in 0..rounds {
        for turn in 0..lab::CONTENDERS {
            let who = (round + turn) % lab::CONTENDERS;
            let add = lab.add(who, 0).await?;
            std::thread::sleep(REST);
            let del = lab.del(who, 0).await?;
            std::thread::sleep(REST);
            if who == lab::FAIRLEAD {
                for (verb, call) in [("ADD", &add), ("DEL", &del.calls[0])] {
                    call.steps(steps.entry(verb).or_default());
                }
            }
            alone[who].add.push(add.ms());
            alone[who].del.push(del.calls[0].ms());
            alone[who].gone.push(del.gone);
        }
    }
    let mut crowd: [Crowd; 2] = Default::default();
    for round in 0..crowds {
        for turn in 0..2 {
            let who = (round + turn) % 2;
            crowd[who].add.push(lab.add_many(who, ADDS).await?);
            lab.del_many(who, ADDS).await?;
            lab.add_many(who, DELS).await?;
            std::thread::sleep(REST);
            let del = lab.del_many(who, DELS).await?;
            crowd[who].del.push(del.returned);
            crowd[who].gone.push(del.gone);
            std::thread::sleep(REST);
        }
    }
    let (down, crowd_down) = agent_down(&mut lab, crowds.div_ceil(2)).await?;
    lab.stop().await?;
    let allocation = allocation::measure()?;
    report(&alone, &steps, &crowd, &down, &crowd_down, &allocation)
}

/// DEL of Fairlead without its agent, beside ptp's: one at a time, then many.
async fn agent_down(lab: &mut Lab, crowds: usize) -> Result<([Times; 2], [Crowd; 2])> {
    let (mut alone, mut crowd): ([Times; 2], [Crowd; 2]) = Default::default();
    for round in 0..=crowds {
        lab.add_many(lab::FAIRLEAD, DELS).await?;
        lab.kill_agent()?;
        lab.add_many(lab::PTP, DELS).await?;
        std::thread::sleep(REST);
        if round == 0 {
            for pod in 0..DELS {
                for turn in 0..2 {
                    let who = (pod + turn) % 2;
                    let del = lab.del(who, pod).await?;
                    alone[who].del.push(del.calls[0].ms());
                    alone[who].gone.push(del.gone);
                    std::thread::sleep(REST);
                }
            }
        } else {
            for turn in 0..2 {
                let who = (round + turn) % 2;
                let del = lab.del_many(who, DELS).await?;
                crowd[who].del.push(del.returned);
                crowd[who].gone.push(del.gone);
                std::thread::sleep(REST);
            }
        }
        lab.start_agent().await?;
    }
    Ok((alone, crowd))
}

fn report(
    alone: &[Times; lab::CONTENDERS],
    steps: &BTreeMap<&str, BTreeMap<String, Vec<f64>>>,
    crowd: &[Crowd; 2],
    down: &[Times; 2],
    crowd_down: &[Crowd; 2],
    allocation: &allocation::Allocation,
) -> Result<Report> {
    let mut report = Report::default();
    let mut figure = |name: &str, ours: &[f64], theirs: &[f64], who: &str, target: Option<f64>| {
        let baseline = format!("{who}, {:.1} ms", Samples::new(theirs.to_vec())?.median());
        let figure =
            Figure::new(format!("cni.{name}"), ratios(ours, theirs)?.median(), "ratio").beside(baseline);
        report.figures.push(match target {
            Some(target) => figure.at_most(target),
            None => figure,
        });
        anyhow::Ok(())
    };
    let [fairlead, ptp, bridge, ptp4] = alone;
    figure("add.vs_ptp", &fairlead.add, &ptp.add, "ptp's ADD", Some(0.30))?;
    figure("add.vs_bridge", &fairlead.add, &bridge.add, "bridge's ADD", None)?;
    figure("add.vs_ptp_ipv4", &fairlead.add, &ptp4.add, "ADD of ptp for IPv4 alone", None)?;
    figure("add_30.vs_ptp", &crowd[0].add, &crowd[1].add, "30 ADDs of ptp at once", Some(0.25))?;
    figure("del.vs_ptp", &fairlead.del, &ptp.del, "ptp's DEL", Some(0.15))?;
    figure("del.vs_ptp_ipv4", &fairlead.del, &ptp4.del, "DEL of ptp for IPv4 alone", None)?;
    figure("del.vs_bridge", &fairlead.del, &bridge.del, "bridge's DEL", None)?;
    figure("del_gone.vs_ptp", &fairlead.gone, &ptp.gone, "ptp's link gone", Some(1.0))?;
    figure("del_50_gone.vs_ptp", &crowd[0].gone, &crowd[1].gone, "50 links of ptp gone", Some(0.3))?;
    figure("del_agent_down.vs_ptp", &down[0].del, &down[1].del, "ptp's DEL", None)?;
    figure("del_gone_agent_down.vs_ptp", &down[0].gone, &down[1].gone, "ptp's link gone", Some(1.0))?;
    figure(
        "del_50_gone_agent_down.vs_ptp",
        &crowd_down[0].gone,
        &crowd_down[1].gone,
        "50 links of ptp gone",
        Some(0.3),
    )?;
    for (name, values) in [("add", &fairlead.add), ("del", &fairlead.del), ("del_gone", &fairlead.gone)] {
        report.figures.push(Figure::new(
            format!("cni.{name}.ms"),
            Samples::new(values.clone())?.median(),
            "ms",
        ));
    }
    report.figures.extend(allocation.figures()?);

    let told = |values: &[f64]| Ok::<_, anyhow::Error>(Samples::new(values.to_vec())?.told(1));
    let against = |ours: &[f64], theirs: &[f64]| Ok::<_, anyhow::Error>(ratio_told(&ratios(ours, theirs)?));
    let row = |what: &str, ours: &[f64], ptp: &[f64], others: Option<[&[f64]; 2]>| {
        let mut cells = vec![what.to_owned(), told(ours)?, told(ptp)?];
        for i in 0..2 {
            cells.push(others.map_or(Ok(String::new()), |o| told(o[i]))?);
        }
        cells.push(against(ours, ptp)?);
        for i in 0..2 {
            cells.push(others.map_or(Ok(String::new()), |o| against(ours, o[i]))?);
        }
        anyhow::Ok(cells)
    };
    let rows = [
        row("ADD", &fairlead.add, &ptp.add, Some([&bridge.add, &ptp4.add]))?,
        row("DEL, until it returns", &fairlead.del, &ptp.del, Some([&bridge.del, &ptp4.del]))?,
        row("DEL, until the link is gone", &fairlead.gone, &ptp.gone, Some([&bridge.gone, &ptp4.gone]))?,
        row("DEL without the agent, until it returns", &down[0].del, &down[1].del, None)?,
        row("DEL without the agent, until the link is gone", &down[0].gone, &down[1].gone, None)?,
        row("30 ADDs at once", &crowd[0].add, &crowd[1].add, None)?,
        row("50 DELs at once, until all have returned", &crowd[0].del, &crowd[1].del, None)?,
        row("50 DELs at once, until all links are gone", &crowd[0].gone, &crowd[1].gone, None)?,
        row("the same without the agent", &crowd_down[0].gone, &crowd_down[1].gone, None)?,
    ];
    report.text = format!(
        "Whole processes from spawn to exit, dual-stack, in milliseconds, {} rounds, each of all in turn.\n\
         `ptp` and `bridge` with host-local and without masquerade; Fairlead with its agent, and {} policies\n\
         in force that select the pod. What they write lies on a tmpfs. *Gone* is when the kernel announces that the link is no more; `ptp` and\n\
         `bridge` then still wait until its memory is freed. With IPv6, `ptp` and `bridge` look whether addresses\n\
         have settled, and look again after 50 ms (duplicate address detection, which would take a second, is off\n\
         here); so `ptp` with IPv4 alone stands beside them.\n\n{}\n",
        fairlead.add.len(),
        lab::POLICIES,
        table(
            &["ms", "Fairlead", "ptp", "bridge", "ptp, IPv4", "of ptp", "of bridge", "of ptp, IPv4"],
            &rows
        )
    );
    report.text.push_str("![ADD and DEL](img/cni.svg)\n\n");
    for (verb, steps) in steps {
        let mut all: Vec<(f64, &String, &Vec<f64>)> = Vec::new();
        for (name, values) in steps {
            all.push((Samples::new(values.clone())?.median(), name, values));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|(_, name, values)| Ok(vec![(*name).clone(), Samples::new((*values).clone())?.told(2)]))
            .collect::<Result<_>>()?;
        report
            .text
            .push_str(&format!("Where the time of {verb} goes:\n\n{}\n", table(&["step", "ms"], &rows)));
    }
    report.text.push_str(&allocation.text()?);
    let mut bars = Vec::new();
    for (what, pick) in [("ADD", 0), ("DEL", 1), ("link gone", 2)] {
        for (i, times) in alone.iter().enumerate() {
            let samples = Samples::new([&times.add, &times.del, &times.gone][pick].clone())?;
            bars.push(Bar {
                label: format!("{what}, {}", lab::NAMES[i]),
                value: samples.median(),
                spread: (samples.quantile(0.25), samples.quantile(0.75)),
                ours: i == lab::FAIRLEAD,
            });
        }
    }
    report.plots.push(("cni.svg".to_owned(), plot::bars("CNI: one pod, shorter is better", "ms", bars)));
    Ok(report)
}
