use super::*;

fn tcp(ports: &[u16]) -> Ranges {
    normal(ports.iter().map(|&p| Range { protocol: Protocol::Tcp, first: p, last: p }).collect())
}

/// A packet that looked its class up before the class was merged away meets its bit unchanged, until
/// it has settled.
#[test]
fn bits_of_a_merged_class_stay_until_it_has_settled() {
    let mut ports = Ports::new(Limits { classes: 8, ..Limits::default() });
    let one = ports.acquire(&tcp(&[80])).unwrap();
    let both = ports.acquire(&tcp(&[80, 81])).unwrap();
    let bits = *ports.bits(both);
    let set = ports.acquire_set(&bits).unwrap();
    ports.take_writes();
    ports.release(one);
    ports.collect(2);
    let (sets, moved) = ports.take_writes();
    assert!(sets.is_empty());
    let [PortClass { first: 81, last: 81, class: kept, .. }] = *moved else { panic!("{moved:?}") };
    let merged = (0..8).find(|&class| bits.contains(class) && class != kept).unwrap();
    // The set is written for another reason.
    let rewrite = |ports: &mut Ports, port: u16| {
        ports.acquire(&tcp(&[port])).unwrap();
        let (sets, _) = ports.take_writes();
        sets.iter().find(|(id, _)| *id == set).unwrap().1
    };
    assert!(rewrite(&mut ports, 80).contains(merged));
    // The class comes back for other ports: now the set must lose it.
    ports.settled(2);
    assert!(!rewrite(&mut ports, 1).contains(merged));
}

/// Classes that only a set at rest tells apart stay apart, because a packet under way may be judged by
/// it; and a class that has merged is nobody else's while a packet under way may carry it.
#[test]
fn what_packets_under_way_meet_is_neither_merged_nor_given_out() {
    let mut ports = Ports::new(Limits { classes: 8, ..Limits::default() });
    let collect = |ports: &mut Ports, serial| {
        // A choice that tells nothing apart is given up, so that it looks.
        let all = Range { protocol: Protocol::Tcp, first: 0, last: u16::MAX };
        let rest = normal(gaps(tcp(&[80, 81]).iter(), all));
        let rest = ports.acquire(&rest).unwrap();
        ports.release(rest);
        ports.collect(serial);
        ports.take_writes().1
    };
    let one = ports.acquire(&tcp(&[80])).unwrap();
    let both = ports.acquire(&tcp(&[80, 81])).unwrap();
    let content = *ports.bits(one);
    let set = ports.acquire_set(&content).unwrap();
    ports.take_writes();
    assert_eq!(collect(&mut ports, 2), []);
    ports.release(one);
    assert_eq!(collect(&mut ports, 3), []);
    ports.release_set(set, 3);
    assert_eq!(collect(&mut ports, 4), []);
    ports.settled(2);
    assert_eq!(collect(&mut ports, 5), []);
    ports.settled(3);
    let moved = PortClass { protocol: Protocol::Tcp, first: 81, last: 81, class: CLASS_FIRST };
    assert_eq!(collect(&mut ports, 6), [moved]);
    let class_of = |ports: &mut Ports, port| {
        let choice = ports.acquire(&tcp(&[port]))?;
        Ok((0..8).filter(|&class| ports.bits(choice).contains(class)).collect::<Vec<_>>())
    };
    assert_eq!(class_of(&mut ports, 1), Ok(vec![CLASS_FIRST + 2]));
    ports.settled(5);
    assert_eq!(class_of(&mut ports, 2), Err(Resource::Classes));
    assert!(ports.take_starved());
    ports.settled(6);
    assert_eq!(class_of(&mut ports, 2), Ok(vec![CLASS_FIRST + 1]));
    // It is no longer what those who had it mean.
    assert!(!ports.bits(both).contains(CLASS_FIRST + 1));
}

/// Ids of sets at the exact number; a set that rests has an id but is not in use.
#[test]
fn sets_have_as_many_ids_as_the_tables_hold() {
    let mut ports = Ports::new(Limits { sets: 1, ..Limits::default() });
    let mut content = |port| {
        let choice = ports.acquire(&tcp(&[port])).unwrap();
        *ports.bits(choice)
    };
    // Classes first, so that later ones do not change what earlier ones are.
    let _ = [80, 81, 82].map(&mut content);
    let [one, two, three] = [80, 81, 82].map(content);
    let first = ports.acquire_set(&one).unwrap();
    ports.acquire_set(&two).unwrap();
    ports.take_writes();
    assert_eq!((first, ports.acquire_set(&three)), (SET_FIRST, Err(Resource::Sets)));
    assert!(!ports.take_starved());
    ports.release_set(first, 1);
    assert!(!ports.has_set(&one) && ports.has_set(&two));
    assert_eq!(ports.acquire_set(&three), Err(Resource::Sets));
    assert!(ports.take_starved());
    ports.settled(1);
    assert_eq!(ports.acquire_set(&three), Ok(first));
}

/// A set that was given up before anybody wrote it, and comes back, is written then.
#[test]
fn a_set_that_comes_back_unwritten_is_written() {
    let mut ports = Ports::new(Limits::default());
    let choice = ports.acquire(&tcp(&[80])).unwrap();
    let content = *ports.bits(choice);
    let set = ports.acquire_set(&content).unwrap();
    ports.release_set(set, 1);
    assert_eq!(ports.take_writes().0, []);
    assert_eq!(ports.acquire_set(&content), Ok(set));
    assert_eq!(ports.take_writes().0, [(set, content)]);
    // What is as it was is not written again.
    ports.release_set(set, 2);
    assert_eq!(ports.acquire_set(&content), Ok(set));
    assert_eq!(ports.take_writes().0, []);
}

#[test]
fn the_smaller_part_of_a_class_moves() {
    let mut ports = Ports::new(Limits::default());
    let wide = normal(vec![Range { protocol: Protocol::Tcp, first: 1, last: 65535 }]);
    ports.acquire(&wide).unwrap();
    let (_, moved) = ports.take_writes();
    assert!(matches!(*moved, [PortClass { protocol: Protocol::Tcp, first: 0, last: 0, .. }]), "{moved:?}");
}
