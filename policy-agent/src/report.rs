//! Tells the API server what cannot be honoured, and that the node is ready.

use std::time::Duration;

use fairlead_cluster::Reporter;

use crate::api::Service;
use crate::engine::Message;

/// Time between two looks at what is wrong.
const LOOK: Duration = Duration::from_secs(15);

/// Reports for ever, or until the engine ends. An API server that does not answer is asked again.
pub async fn run(mut reporter: Reporter, remove_taint: bool, service: Service) {
    let mut readiness = service.readiness.clone();
    let mut tainted = remove_taint;
    let mut said = None;
    loop {
        if tainted && readiness.borrow_and_update().waiting_for.is_none() {
            match reporter.remove_taint().await {
                Ok(removed) => {
                    tainted = false;
                    if removed {
                        tracing::info!(taint = fairlead_cluster::report::TAINT, "taken from this node");
                    }
                }
                Err(e) => say(&mut said, format!("the node keeps its taint: {e}")),
            }
        }
        let Ok(snapshot) = service.engine.ask(Message::Snapshot).await else { return };
        if let Err(e) = reporter.report(&snapshot.problems).await {
            say(&mut said, format!("no events: {e}"));
        }
        // The taint goes at once when the agent gets ready.
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Ok(()) = readiness.changed(), if tainted => {}
        }
    }
}

/// Logs what was not logged last.
fn say(said: &mut Option<String>, message: String) {
    if said.as_ref() != Some(&message) {
        tracing::warn!("{message}");
        *said = Some(message);
    }
}
