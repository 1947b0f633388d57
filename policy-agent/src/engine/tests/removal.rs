use super::{Done, EnforcerError, LONG, Message, Running, attachment};

fn removed(done: &[Done]) -> usize {
    done.iter().filter(|done| **done == Done::Remove(5)).count()
}

/// An endpoint that the datapath would not let go of is taken out with a later step, and told until then.
#[tokio::test]
async fn what_the_kernel_would_not_let_go_of_is_taken_out_later() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    engine.world.lock().unwrap().refuse_removals = true;
    engine.handle.tell(Message::LinkGone(0x10005));
    let snapshot = engine.snapshot().await;
    assert_eq!(snapshot.endpoints.len(), 0);
    assert!(snapshot.problems.iter().any(|p| p.message.contains("slot 5: ")), "{:?}", snapshot.problems);
    engine.world.lock().unwrap().refuse_removals = false;
    engine.batch(&[super::pod("other", "")]);
    let done = engine.done().await;
    assert_eq!(removed(&done), 1, "{done:?}");
    // What may still be known of its addresses.
    assert!(done.contains(&Done::Addresses(1, 0)), "{done:?}");
    assert_eq!(engine.snapshot().await.problems, []);
    engine.batch(&[super::pod("other", "u9")]);
    assert_eq!(removed(&engine.done().await), 0);
}

/// What could not be undone of a registration is not, once another one has taken its place.
#[tokio::test]
async fn what_is_registered_again_is_not_taken_out() {
    let engine = Running::ready(LONG).await;
    let web = || attachment(5, Some(("web", "u1")));
    {
        let mut world = engine.world.lock().unwrap();
        world.refuse = Some(EnforcerError::Kernel("map addresses4: full".into()));
        world.refuse_removals = true;
    }
    engine.put(web()).await.unwrap_err();
    engine.world.lock().unwrap().refuse = None;
    engine.put(web()).await.unwrap();
    engine.done().await;
    engine.world.lock().unwrap().refuse_removals = false;
    engine.batch(&[super::pod("other", "")]);
    assert_eq!(removed(&engine.done().await), 0);
    let snapshot = engine.snapshot().await;
    assert_eq!((snapshot.endpoints.len(), snapshot.problems), (1, vec![]));
}
