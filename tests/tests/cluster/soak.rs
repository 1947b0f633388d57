//! A short soak; `cargo xtask test --soak 30m` runs a long one.

use std::time::Duration;

use fairlead_tests::soak::{Options, run};

#[tokio::test]
async fn random_changes_under_random_traffic_judge_no_packet_wrongly() {
    if !fairlead_tests::privileged() {
        return;
    }
    let summary = run(Options { duration: Duration::from_secs(20), seed: 4 }).await.unwrap();
    for line in summary.lines() {
        println!("{line}");
    }
    assert_eq!(summary.faults(), Vec::<String>::new(), "{:#?}", summary.wrong);
    assert!(summary.mutations["agents killed"] > 0 && summary.mutations["pods replaced"] > 0);
}
