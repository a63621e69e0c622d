//! What llama-perplexity measured, the limits it is held to, and how that is shown.

use crate::{table, util::Result};

/// Our mean KL divergence may be this many times the host's.
pub const MAX_KLD_RATIO: f64 = 1.1;
/// The same for GGML_AMX_PRECISION=exact.
pub const MAX_KLD_RATIO_EXACT: f64 = 0.1;
/// We may choose the F32 model's first token this much less often than the host, in percentage points.
/// On 4,096 tokens the error of the difference alone is 0.44, see [`ERRORS`].
const MAX_TOP_LOSS: f64 = 0.5;
/// Our perplexity may differ from the host's by this fraction. The host's own error moves it away from
/// that of the F32 reference, so what lies between the two is no deviation.
/// On 4,096 tokens the error of the difference alone is 0.24 %, see [`ERRORS`].
const MAX_PPL_CHANGE: f64 = 0.003;
/// A short text cannot show so small a difference: what lies within this many standard errors is no finding. A run
/// makes a dozen comparisons; with a limit of two errors every twentieth sound one would fail. (Seen between
/// ik_llama.cpp's own kernels with and without -rtr: 2.4 errors in perplexity, 1.2 in first tokens.)
const ERRORS: f64 = 3.0;
/// So many percent of the matrices must lie in the AMX buffer.
const MIN_HELD: f64 = 99.0;
/// Models that equal each other on paper choose the same first token this often in F32, in percent.
const MIN_TWIN_TOP: f64 = 99.0;
/// Their mean KL divergence.
const MAX_TWIN_KLD: f64 = 1e-5;

/// What llama-perplexity says about one way to run one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Perplexity of the quantised model.
    pub ppl: f64,
    /// Perplexity of the same weights in F32.
    pub ppl_base: f64,
    /// Standard error of `ppl / ppl_base`, which is smaller than that of either: the text is the same.
    pub ppl_error: f64,
    /// Mean KL divergence to the F32 model's distributions.
    pub kld: f64,
    /// How often both choose the same first token, in percent.
    pub same_top: f64,
    /// Standard error of `same_top`.
    pub top_error: f64,
}

/// One weight type, measured both ways.
pub struct Row {
    /// The weight type.
    pub name: String,
    /// Through this library.
    pub ours: Score,
    /// Through the host's plain path.
    pub plain: Score,
    /// Our mean KL divergence may be this many times the host's.
    pub max_kld_ratio: f64,
    /// How many of the matrices' weights are of this type, in percent.
    pub in_type: f64,
    /// How much of the matrices lay in the AMX buffer, in percent; None when none should.
    pub held: Option<f64>,
}

/// Two models that equal each other on paper, one measured against the other.
pub struct Twins {
    /// The weight type.
    pub name: String,
    /// With the other one in the place of the F32 model.
    pub score: Score,
}

/// The statistics llama-perplexity prints at its end.
pub fn parse(report: &str) -> Result<Score> {
    // `name : value ± error`
    let word = |prefix: &str, n: usize| {
        let value = report.lines().find(|l| l.starts_with(prefix)).and_then(|l| l.split_once(':'));
        let value = value.and_then(|(_, v)| v.split_whitespace().nth(n)).and_then(|v| v.parse::<f64>().ok());
        match value.filter(|v| v.is_finite()) {
            Some(v) => Ok(v),
            None => Err(format!("llama-perplexity printed no finite `{}`", prefix.trim_end_matches([':', ' ']))),
        }
    };
    Ok(Score {
        ppl: word("Mean PPL(Q) ", 0)?,
        ppl_base: word("Mean PPL(base)", 0)?,
        ppl_error: word("Mean PPL(Q)/PPL(base) ", 2)?,
        kld: word("Mean    KLD:", 0)?,
        same_top: word("Same top p:", 0)?,
        top_error: word("Same top p:", 2)?,
    })
}

/// Sentences about the limits that do not hold.
pub fn judge(row: &Row) -> Vec<String> {
    let Row { name, ours, plain, held, max_kld_ratio, .. } = row;
    let mut failures = Vec::new();
    if let Some(held) = held.filter(|held| *held < MIN_HELD) {
        failures.push(format!("{name}: only {held:.1} % of the matrices lie in the AMX buffer"));
    }
    if ours.kld > plain.kld * max_kld_ratio {
        failures.push(format!(
            "{name}: mean KL divergence {:.6} is above {max_kld_ratio} x the host's {:.6}",
            ours.kld, plain.kld
        ));
    }
    let max_loss = MAX_TOP_LOSS.max(ERRORS * ours.top_error.hypot(plain.top_error));
    if ours.same_top < plain.same_top - max_loss {
        failures.push(format!(
            "{name}: same top token {:.3} % is more than {max_loss:.2} below the host's {:.3} %",
            ours.same_top, plain.same_top
        ));
    }
    let nearest = ours.ppl.clamp(plain.ppl.min(ours.ppl_base), plain.ppl.max(ours.ppl_base));
    let limit = MAX_PPL_CHANGE.max(ERRORS * ours.ppl_error.hypot(plain.ppl_error));
    if (ours.ppl / nearest - 1.0).abs() > limit {
        let change = 100.0 * (ours.ppl / plain.ppl - 1.0);
        failures.push(format!(
            "{name}: perplexity {:.4} is {change:+.2} % from the host's {:.4}, limit {:.2} % (F32: {:.4})",
            ours.ppl,
            plain.ppl,
            100.0 * limit,
            ours.ppl_base
        ));
    }
    failures
}

/// Sentences about what tells two models apart that should equal each other.
pub fn judge_twins(twins: &Twins) -> Option<String> {
    let Score { same_top, kld, .. } = twins.score;
    let same = same_top >= MIN_TWIN_TOP && kld <= MAX_TWIN_KLD;
    (!same).then(|| {
        format!("{}: experts do not equal the dense model: same top token {same_top:.2} %, KLD {kld:.6}", twins.name)
    })
}

/// The table for a human.
pub fn show(rows: &[Row]) -> String {
    let header = [
        "type",
        "in type",
        "in AMX",
        "KLD host",
        "KLD ours",
        "ratio",
        "top % host",
        "top % ours",
        "PPL F32",
        "PPL host",
        "PPL ours",
        "change",
        "",
    ];
    let cells = |row: &Row| {
        let (o, p) = (row.ours, row.plain);
        let verdict = if judge(row).is_empty() { "ok" } else { "FAILED" };
        let change = 100.0 * (o.ppl / p.ppl - 1.0);
        vec![
            row.name.clone(),
            format!("{:.0} %", row.in_type),
            row.held.map_or("-".into(), |held| format!("{held:.0} %")),
            format!("{:.6}", p.kld),
            format!("{:.6}", o.kld),
            format!("{:.2}", o.kld / p.kld),
            format!("{:.2}", p.same_top),
            format!("{:.2}", o.same_top),
            format!("{:.3}", o.ppl_base),
            format!("{:.3}", p.ppl),
            format!("{:.3}", o.ppl),
            format!("{change:+.2} %"),
            verdict.to_string(),
        ]
    };
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The table of twins.
pub fn show_twins(all: &[Twins]) -> String {
    let cells = |twins: &Twins| {
        let s = twins.score;
        let verdict = if judge_twins(twins).is_none() { "ok" } else { "FAILED" };
        let numbers = [format!("{:.6}", s.kld), format!("{:.2}", s.same_top)];
        let ppl = [s.ppl_base, s.ppl].map(|v| format!("{v:.3}"));
        [twins.name.clone()].into_iter().chain(numbers).chain(ppl).chain([verdict.into()]).collect()
    };
    let header = ["type", "KLD", "top %", "PPL dense", "PPL experts", ""];
    table::render(&header, &all.iter().map(cells).collect::<Vec<_>>())
}

/// The first table for a program.
pub fn json(rows: &[Row]) -> String {
    let score = |s: &Score| {
        format!("{{\"kld\":{},\"same_top\":{},\"ppl\":{},\"ppl_f32\":{}}}", s.kld, s.same_top, s.ppl, s.ppl_base)
    };
    let one = |r: &Row| {
        let passed = judge(r).is_empty();
        format!(
            "{{\"type\":\"{}\",\"passed\":{passed},\"in_type\":{},\"in_amx\":{},\"ours\":{},\"host\":{}}}",
            r.name,
            r.in_type,
            r.held.map_or("null".to_string(), |held| held.to_string()),
            score(&r.ours),
            score(&r.plain)
        )
    };
    format!("[{}]", rows.iter().map(one).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "====== Perplexity statistics ======\n\
        Mean PPL(Q)                   :  41.312268 ±   2.038494\n\
        Mean PPL(base)                :  41.222044 ±   2.033260\n\
        Mean PPL(Q)/PPL(base)         :   1.002189 ±   0.001394\n\
        Mean    KLD:   0.003361 ±   0.000041\n\
        Same top p: 96.127 ± 0.302 %\n";

    const PLAIN: Score = Score {
        ppl: 41.312268,
        ppl_base: 41.222044,
        ppl_error: 0.001394,
        kld: 0.003361,
        same_top: 96.127,
        top_error: 0.302,
    };

    #[test]
    fn the_statistics_of_llama_perplexity_are_read() {
        assert_eq!(parse(REPORT), Ok(PLAIN));
        assert!(parse(&REPORT.replace("0.003361", "nan")).unwrap_err().contains("KLD"));
        assert!(parse("").is_err());
    }

    #[test]
    fn each_limit_fails_on_its_own_and_names_the_type() {
        let row = |ours, held| Row {
            name: "Q4_0".into(),
            ours,
            plain: PLAIN,
            in_type: 100.0,
            held: Some(held),
            max_kld_ratio: MAX_KLD_RATIO,
        };
        let judged = |ours: Score| judge(&row(ours, 100.0));
        assert_eq!(judged(PLAIN), Vec::<String>::new());
        assert_eq!(judged(Score { ppl: PLAIN.ppl_base, ..PLAIN }), Vec::<String>::new());
        let failures = [
            judged(Score { kld: PLAIN.kld * 1.11, ..PLAIN }),
            judged(Score { same_top: PLAIN.same_top - 1.29, ..PLAIN }),
            judged(Score { ppl: PLAIN.ppl * 1.0062, ..PLAIN }),
            judged(Score { ppl: PLAIN.ppl_base * 0.9935, ..PLAIN }),
            judge(&row(PLAIN, 98.9)),
        ];
        assert!(failures.iter().all(|f| f.len() == 1 && f[0].starts_with("Q4_0: ")), "{failures:?}");
    }

    #[test]
    fn perplexity_and_first_token_have_slack_for_chance_and_no_more() {
        let judged = |ours, plain| {
            let name = String::new();
            judge(&Row { name, ours, plain, in_type: 100.0, held: None, max_kld_ratio: MAX_KLD_RATIO }).len()
        };
        let change = |change: f64, ppl_error| {
            let plain = Score { ppl_error, ..PLAIN };
            judged(Score { ppl: PLAIN.ppl * (1.0 + change), ..plain }, plain)
        };
        let loss = |loss: f64, top_error| {
            let plain = Score { top_error, ..PLAIN };
            judged(Score { same_top: PLAIN.same_top - loss, ..plain }, plain)
        };
        assert_eq!((change(0.0029, 0.0001), change(0.0031, 0.0001)), (0, 1));
        assert_eq!((change(0.0059, 0.0014), change(0.0060, 0.0014)), (0, 1));
        assert_eq!((loss(0.49, 0.01), loss(0.51, 0.01)), (0, 1));
        assert_eq!((loss(1.28, 0.302), loss(1.29, 0.302)), (0, 1));
    }

    #[test]
    fn twins_agree_nearly_always() {
        let judged =
            |same_top, kld| judge_twins(&Twins { name: "Q4_0".into(), score: Score { same_top, kld, ..PLAIN } });
        assert_eq!(judged(99.0, 1e-5), None);
        assert!(judged(98.9, 0.0).unwrap().starts_with("Q4_0: "));
        assert!(judged(100.0, 1.1e-5).is_some());
    }
}
