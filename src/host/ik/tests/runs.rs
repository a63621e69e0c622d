//! Several contexts compute graphs, each by its own threads, while models are loaded and unloaded, and a packed tensor
//! is given back and packed again. `cargo xtask race` runs these tests under ThreadSanitizer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::context::{BORROWED, Context, Model, Shares};
use super::{PackedMatrix, join};
use crate::cpu::rendezvous::Rendezvous;
use crate::host::ik::node::Node;
use crate::host::ik::packed::{self, PackedView};
use crate::host::ik::runs;
use crate::process::tests::in_child;

/// Held by tests of which one waits until there is no run, or waits for others during one: a process has one list of
/// runs.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Loads and unloads models, and looks up their tensors, as long as `goes_on` says.
fn load_and_unload(first_seed: usize, goes_on: impl Fn() -> bool) {
    let mut seed = first_seed;
    while goes_on() {
        let model: Vec<PackedMatrix> = (0..3).map(|i| PackedMatrix::load(1, seed + i)).collect();
        for matrix in &model {
            let PackedView { shape, base, offset } = packed::view_at(matrix.base().wrapping_add(100)).unwrap();
            assert!(base == matrix.base().cast_const() && offset == 100);
            let mut back = vec![0; shape.plain_size()];
            // SAFETY: the tensor is there.
            unsafe { shape.read(base, 0, &mut back) };
            assert!(back == matrix.plain);
        }
        seed += 1;
    }
}

/// Gives a tensor back and packs it again, whenever there is no run, as long as `goes_on` says. Returns how often it
/// was given back.
fn give_back_and_pack(matrix: &PackedMatrix, goes_on: impl Fn() -> bool) -> usize {
    let mut given_back = 0;
    while goes_on() {
        let nothing = runs::begin(1, |beginning, _| {
            assert!(beginning.wait_until_alone());
            if packed::is_packed(matrix.tensor()) {
                // SAFETY: there is no run, and none begins.
                unsafe { packed::give_back(matrix.tensor(), "a test") };
                given_back += 1;
            } else {
                matrix.pack();
            }
        });
        assert!(nothing.is_none());
        std::thread::yield_now();
    }
    given_back
}

#[test]
fn contexts_compute_while_models_are_loaded_and_unloaded_and_a_tensor_is_given_back() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    const ROUNDS: usize = 40;
    let model = Model::load(1);
    let wanted = model.results();
    assert!(wanted.iter().flatten().all(|v| v.is_finite()) && wanted[BORROWED][0] != 0.0);
    let contexts = [2, 16, 3].map(|threads| Context::new(threads, &model));
    let (computing, given_back) = (AtomicUsize::new(contexts.len()), AtomicUsize::new(0));
    let goes_on = || computing.load(Ordering::Relaxed) > 0;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for context in &contexts {
            for index in 0..context.threads {
                let (wanted, computing) = (&wanted, &computing);
                threads.push(scope.spawn(move || {
                    context.repeat(index, ROUNDS, &mut |node, results| {
                        // Of a matrix that was given back, this test computes nothing.
                        let by_host = node == BORROWED && !context.borrowed_is_packed();
                        context.check(by_host || results == wanted[node]);
                    });
                    if index == 0 {
                        computing.fetch_sub(1, Ordering::Relaxed);
                    }
                }));
            }
        }
        let (borrowed, given_back, goes_on) = (&model.borrowed, &given_back, &goes_on);
        threads.extend((0..2).map(|seed| scope.spawn(move || load_and_unload(seed, goes_on))));
        threads.push(scope.spawn(move || given_back.store(give_back_and_pack(borrowed, goes_on), Ordering::Relaxed)));
        join(threads);
    });
    assert_eq!(contexts.map(|context| context.failed()), [0; 3]);
    assert!(given_back.load(Ordering::Relaxed) > 0);
}

#[test]
fn given_shares_that_are_handed_out_then_all_of_them_are_computed_once() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let model = Model::load(7);
    let wanted = model.results();
    for threads in [1, 2, 3, 7, 40] {
        for each in [1, 2, 3, threads] {
            for shares in [Shares::HandedOut(each), Shares::TakenFromTheFirst(each)] {
                let mut context = Context::new(threads, &model);
                context.shares = shares;
                std::thread::scope(|scope| {
                    let thread = |index| {
                        let (context, wanted) = (&context, &wanted);
                        scope.spawn(move || {
                            context.repeat(index, 20, &mut |node, results| context.check(results == wanted[node]));
                        })
                    };
                    join((0..threads).map(thread).collect());
                });
                assert_eq!(context.failed(), 0, "{threads} threads, {each} shares of an expert");
            }
        }
    }
}

#[test]
fn forty_contexts_at_once_are_all_computed_here() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    const CONTEXTS: usize = 40;
    let model = Model::load(4);
    let wanted = model.results();
    let everybody = Rendezvous::new();
    std::thread::scope(|scope| {
        let context = || {
            scope.spawn(|| {
                let context = Context::new(1, &model);
                let run = context.begin().expect("it has products of ours");
                everybody.wait(CONTEXTS, true);
                context.run(0, &mut |node, results| context.check(results == wanted[node]));
                // No run ends before all have computed.
                everybody.wait(CONTEXTS, true);
                drop(run);
                assert_eq!(context.failed(), 0);
            })
        };
        join((0..CONTEXTS).map(|_| context()).collect());
    });
}

#[test]
fn a_graph_is_a_run_if_the_host_computes_with_packed_weights_and_not_if_nothing_is_ours() {
    let model = Model::load(10);
    let of_host = Context::new(1, &model).node_of_host();
    assert!(runs::begin(1, |_, nodes| nodes.push(of_host)).is_some(), "they could be given back");
    assert!(runs::begin(1, |_, nodes| nodes.push(Node { is_packed: false, ..of_host })).is_none());
    assert!(runs::begin(1, |_, _| ()).is_none());
}

#[test]
fn in_a_forked_child_only_runs_of_the_thread_that_forked_go_on() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let model = Model::load(13);
    let (own, other) = (Context::new(1, &model), Context::new(1, &model));
    let wanted = model.results();
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait = |flag: &AtomicBool| {
        while !flag.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let run = other.begin().unwrap();
            begun.store(true, Ordering::Release);
            wait(&over);
            drop(run);
        });
        wait(&begun);
        let run = own.begin().unwrap();
        let mut run = Some(run);
        let in_the_child = || {
            own.run(0, &mut |node, results| own.check(results == wanted[node]));
            drop(run.take());
            // The run of the other thread is gone.
            assert!(runs::begin(1, |beginning, _| assert!(beginning.wait_until_alone())).is_none());
            let again = other.begin().unwrap();
            other.run(0, &mut |node, results| other.check(results == wanted[node]));
            drop(again);
            assert_eq!((own.failed(), other.failed()), (0, 0));
        };
        let in_the_child = std::panic::AssertUnwindSafe(in_the_child);
        let went_well = in_child(false, || std::panic::catch_unwind(in_the_child).is_ok());
        over.store(true, Ordering::Release);
        assert!(went_well);
        own.run(0, &mut |node, results| assert!(results == wanted[node]));
    });
}

#[test]
fn a_graph_inside_another_one_is_found_and_so_is_the_rest_of_the_outer_one() {
    let model = Model::load(7);
    let (outer, inner) = (Context::new(1, &model), Context::new(1, &model));
    let wanted = model.results();
    let run = outer.begin().unwrap();
    let mut nested = 0;
    outer.run(0, &mut |node, results| {
        assert!(results == wanted[node], "node {node}");
        let run = inner.begin().unwrap();
        inner.run(0, &mut |node, results| assert!(results == wanted[node], "inner node {node}"));
        drop(run);
        nested += 1;
        // It would wait for itself.
        assert!(runs::begin(1, |beginning, _| assert!(!beginning.wait_until_alone())).is_none());
    });
    drop(run);
    assert_eq!((nested, outer.failed(), inner.failed()), (4, 0, 0));
}
