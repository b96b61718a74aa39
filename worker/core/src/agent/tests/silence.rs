//! What is told of the silence of an attempt.

use super::*;
use crate::silence::{Evidence, Silence, Stage, Told};

fn silence(episode: u32, stage: Stage) -> Silence {
    Silence {
        episode,
        stage,
        lasted: 300 * SECOND,
        stop_after: None,
    }
}

fn recorded(episode: u32, stage: Stage) -> Fact {
    Fact::Silence(Box::new(Told {
        silence: silence(episode, stage),
        wall_us: 1_000_000,
        evidence: Evidence::default(),
    }))
}

/// The steps that are told, with whether somebody had looked.
fn told(effects: &[Effect]) -> Vec<(u32, Stage, bool)> {
    let told = says(effects).into_iter().filter_map(|say| match say {
        Say::Silence { told, .. } => Some((
            told.silence.episode,
            told.silence.stage,
            told.evidence != Evidence::default(),
        )),
        _ => None,
    });
    told.collect()
}

#[test]
fn f37_a_stage_that_came_while_nobody_could_be_told_is_told_too() {
    let mut driver = Driver::running(terms());
    driver.tell(Event::Closed);
    let looked = |driver: &mut Driver, stage| {
        let effects = driver.facts(1, [recorded(1, stage)]);
        let look = Effect::LookInto {
            fence: 7,
            silence: silence(1, stage),
        };
        assert!(effects.contains(&look), "{effects:?}");
        driver.tell(Event::LookedInto {
            fence: 7,
            silence: silence(1, stage),
            evidence: Box::new(Evidence {
                stack: "main".to_owned(),
                ..Evidence::default()
            }),
        })
    };
    assert_eq!(told(&looked(&mut driver, Stage::Warned)), []);
    assert_eq!(told(&looked(&mut driver, Stage::Reminded)), []);
    let effects = driver.greet(vec![judged(7, Verdict::Continue)]);
    let both = [(1, Stage::Warned, true), (1, Stage::Reminded, true)];
    assert_eq!(told(&effects), both);

    // Of one that is over, and of one before the newest, nothing more is told.
    let effects = driver.facts(1, [recorded(1, Stage::Over)]);
    assert_eq!(told(&effects), [(1, Stage::Over, false)]);
    driver.facts(1, [recorded(2, Stage::Warned)]);
    driver.tell(Event::Closed);
    let effects = driver.greet(vec![judged(7, Verdict::Continue)]);
    assert_eq!(told(&effects), [(2, Stage::Warned, false)]);
}

#[test]
fn f37_a_stage_that_is_overtaken_while_someone_looks_is_told() {
    let mut driver = Driver::running(terms());
    driver.facts(1, [recorded(1, Stage::Warned)]);
    driver.facts(1, [recorded(1, Stage::Reminded)]);
    let answer = |driver: &mut Driver, stage| {
        driver.tell(Event::LookedInto {
            fence: 7,
            silence: silence(1, stage),
            evidence: Box::default(),
        })
    };
    assert_eq!(told(&answer(&mut driver, Stage::Warned)), []);
    let effects = answer(&mut driver, Stage::Reminded);
    let both = [(1, Stage::Warned, false), (1, Stage::Reminded, false)];
    assert_eq!(told(&effects), both);
}
