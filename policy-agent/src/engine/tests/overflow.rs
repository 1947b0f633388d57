use fairlead_policy::compiler::Limits;
use serde_json::{Value, json};

use super::{LONG, Running, attachment, policy};

/// Rules that do not fit are told by status and metrics, with what holds instead, until they fit.
#[tokio::test]
async fn what_does_not_fit_is_reported() {
    let engine = Running::ready_within(Limits { cidrs: 1, ..Limits::default() }, LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    let blocks = |cidrs: &[&str]| {
        let from: Vec<Value> = cidrs.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
        policy("a", json!({"podSelector": {}, "ingress": [{"from": from}]}))
    };
    let reported = async |instead: &str, words: &str| {
        let snapshot = engine.snapshot().await;
        let [problem] = &*snapshot.problems else { panic!("{:?}", snapshot.problems) };
        assert_eq!(problem.object.as_deref(), Some("Pod shop/web"));
        assert!(problem.message.contains("shop/a") && problem.message.contains(words), "{problem}");
        let text = crate::metrics::text(
            &snapshot,
            &crate::readiness::Readiness::default(),
            crate::drops::Counts::default(),
        );
        let sample = format!(
            "fairlead_endpoint_overflow{{namespace=\"shop\",pod=\"web\",interface=\"fl5\",\
             direction=\"ingress\",instead=\"{instead}\"}} 1\n"
        );
        assert!(text.contains(&sample), "{text}");
        assert!(text.contains("fairlead_table_limit{table=\"cidrs4\"} 1\n"), "{text}");
        text
    };
    // It was open: now it is closed.
    engine.batch(&[blocks(&["10.0.0.0/8", "11.0.0.0/8"])]);
    let text = reported("closed", "it is closed").await;
    assert!(text.contains("fairlead_table_entries{table=\"cidrs4\"} 0\n"), "{text}");
    engine.batch(&[blocks(&["10.0.0.0/8"])]);
    let snapshot = engine.snapshot().await;
    assert_eq!((snapshot.problems, snapshot.overflow), (vec![], vec![]));
    // It had rules: they stay.
    engine.batch(&[blocks(&["10.0.0.0/8", "11.0.0.0/8"])]);
    let text = reported("older", "stay in force").await;
    assert!(text.contains("fairlead_table_entries{table=\"cidrs4\"} 1\n"), "{text}");
}
