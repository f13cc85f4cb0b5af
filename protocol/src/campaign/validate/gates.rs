//! Gates: which cells, and what must hold of them.

use super::{Findings, below, peer, schema};
use crate::findings::Step::{self, Field, Index};
use crate::relation::Relation;
use crate::result::{Gate, GateCondition, GateSelector, Limit, Subject};
use crate::units::Percent;
use schema::gate::{Condition, Limited};

pub(super) fn gates(spec: &schema::Spec, out: &mut Findings) -> Vec<Gate> {
    let mut gates = Vec::new();
    for (index, written) in spec.gates.iter().enumerate() {
        let path = [Field("spec"), Field("gates"), Index(index)];
        let cells = &written.cells;
        known_arm(spec, cells.arm.as_ref(), &below(&path, &[Field("cells"), Field("arm")]), out);
        let known = |name: &String| spec.workloads.iter().any(|other| other.name == *name);
        let unclear = out.has_unclear_names("workloads", spec.workloads.len());
        if let Some(workload) = cells.workload.as_ref().filter(|name| !unclear && !known(name)) {
            out.add(
                &below(&path, &[Field("cells"), Field("workload")]),
                format!("there is no workload `{workload}`"),
            );
        }
        let Some(condition) = condition(spec, written, &path, out) else { continue };
        let cells = GateSelector {
            arm: cells.arm.clone(),
            workload: cells.workload.clone(),
            direction: cells.direction,
            peer: cells.peer.map(peer),
        };
        gates.push(Gate { cells, condition });
    }
    tolls(spec, out);
    gates
}

/// A toll is relative to the first native arm.
fn tolls(spec: &schema::Spec, out: &mut Findings) {
    let arms = [Field("spec"), Field("arms")];
    let unclear = (0..spec.arms.len()).find(|arm| out.is_unclear(&below(&arms, &[Index(*arm)])));
    let baseline = spec.arms.iter().position(|arm| arm.native.is_some());
    // An arm before it that can't be read may be the baseline.
    let known = unclear.is_none_or(|unclear| baseline.is_some_and(|baseline| baseline < unclear));
    if !known || out.is_told(&arms) {
        return;
    }
    let baseline = baseline.and_then(|baseline| spec.arms.get(baseline));
    for (index, gate) in spec.gates.iter().enumerate() {
        if !gate.conditions.iter().any(|condition| condition.form.of == Limited::Toll) {
            continue;
        }
        let path = [Field("spec"), Field("gates"), Index(index), Field("cells"), Field("arm")];
        match baseline {
            Some(baseline) if gate.cells.arm.as_ref() == Some(&baseline.name) => {
                let message = format!(
                    "`{}` is the baseline that tolls are relative to: name another arm",
                    baseline.name
                );
                out.add(&path, message);
            }
            Some(_) => {}
            None => {
                let message = "a toll is relative to native: add an arm `native: {}`";
                out.add(&[Field("spec"), Field("gates")], message);
                break;
            }
        }
    }
}

fn known_arm(spec: &schema::Spec, name: Option<&String>, path: &[Step], out: &mut Findings) {
    let unclear = out.has_unclear_names("arms", spec.arms.len());
    if let Some(arm) = name.filter(|arm| !unclear && !spec.arms.iter().any(|other| other.name == **arm)) {
        out.add(path, format!("there is no arm `{arm}`"));
    }
}

fn condition(
    spec: &schema::Spec,
    written: &schema::Gate,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    let conditions: Vec<_> =
        written.conditions.iter().map(|condition| one(spec, written, condition, path, out)).collect();
    conditions.into_iter().next()?
}

fn one(
    spec: &schema::Spec,
    gate: &schema::Gate,
    condition: &'_ Condition,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    let Condition { form, figure, to, limits } = condition;
    let path = below(path, &[Field(&form.field)]);
    if let Some(to) = to {
        known_arm(spec, Some(to), &below(&path, &[Field("to")]), out);
        if gate.cells.arm.as_ref() == Some(to) {
            let message = format!("`{to}` relative to itself is 100%: name another arm");
            out.add(&below(&path, &[Field("to")]), message);
        }
    }
    for (relation, limit) in limits {
        if let Some(why) = out_of_range(form.quantity.is_none(), relation, limit) {
            out.add(&below(&path, &[Field(relation.id)]), format!("{} is out of range: {why}", limit.text));
        }
    }
    let [(relation, limit)] = &limits[..] else { return None };
    let subject = match form.of {
        Limited::Toll => Subject::Toll,
        Limited::Ratio => Subject::RatioTo(to.clone()?),
        Limited::Median(_) => Subject::Median,
    };
    Some(GateCondition { figure, subject, relation, limit: limit.clone() })
}

/// What a limit must be that is none of such a relation.
fn out_of_range(is_bare: bool, relation: &Relation, limit: &Limit) -> Option<String> {
    match relation.widest {
        Some(widest) if !(limit.number > 0.0 && limit.number <= widest) => {
            Some(format!("write more than 0% and at most {}", Percent::from_fraction(widest)))
        }
        None if is_bare && limit.number < 0.0 => Some("write 0 or more".into()),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::parse;
    use super::super::schema::gate::{COMPARED, FORMS, Form};
    use super::*;
    use crate::figure::FIGURES;
    use crate::relation::{AT_LEAST, AT_MOST, RELATIONS, WITHIN};

    /// The gates of a campaign, written as a list in one line.
    fn gates(written: &str) -> Result<Vec<Gate>, Vec<String>> {
        let text = format!(
            "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: gated}}\nspec:\n  hosts: {{select: {{}}}}\n  arms: \
             [{{name: native, native: {{}}}}, {{name: other, native: {{}}}}]\n  workloads: [{{name: bulk, stream: {{}}}}]\n  \
             gates: {written}\n"
        );
        parse(&text)
            .map(|campaign| campaign.gates)
            .map_err(|problems| problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn every_figure_of_the_table_has_a_gate_with_every_relation() {
        for figure in FIGURES {
            let form = FORMS.iter().find(|form| form.of == Limited::Median(figure)).expect(figure.id);
            let (sample, number) = match figure.unit.limit() {
                (Some(quantity), divisor) => (
                    quantity.sample().to_owned(),
                    quantity.read(quantity.sample()).expect("is one").0 / divisor,
                ),
                (None, divisor) => ("3".to_owned(), 3.0 / divisor),
            };
            for relation in RELATIONS {
                let written = format!("[{{{}: {{{}: {sample}}}}}]", form.field, relation.id);
                let found = gates(&written);
                if relation.widest.is_some() {
                    let unknown = format!("unknown field `{}`", relation.id);
                    assert!(found.expect_err(&written)[0].contains(&unknown));
                    continue;
                }
                let condition = &found.expect(&written)[0].condition;
                assert_eq!((condition.figure, &condition.subject), (figure, &Subject::Median), "{written}");
                assert_eq!((condition.relation, &condition.limit.text), (relation, &sample), "{written}");
                assert!((condition.limit.number / number - 1.0).abs() < 1e-12, "{written}: {condition:?}");
            }
        }
        let fields: Vec<&str> = FORMS.iter().map(|form| form.field.as_str()).collect();
        assert_eq!(fields[..2], ["toll", "ratio"]);
        assert!(fields.contains(&"exitsPerMegabyte"), "{fields:?}");
        assert!(Form::named("exits-per-megabyte").is_none());
    }

    #[test]
    fn a_ratio_is_of_any_figure_that_is_compared() {
        for (name, figure) in COMPARED.iter() {
            let found = gates(&format!(
                "[{{cells: {{arm: other}}, ratio: {{of: {name}, to: native, atMost: 90%}}}}]"
            ));
            let condition = &found.expect(name)[0].condition;
            assert_eq!((condition.figure, condition.relation), (*figure, &AT_MOST));
            assert_eq!(condition.to_string(), format!("{} at most 90% of native's", figure.title));
        }
        let short = gates("[{ratio: {to: native, within: 2%}}, {ratio: {to: native, atLeast: 900%}}]")
            .expect("are good");
        assert_eq!((short[0].condition.figure.id, short[0].condition.relation), ("goodput", &WITHIN));
        assert_eq!((short[1].condition.relation, short[1].condition.limit.number), (&AT_LEAST, 9.0));
        let toll =
            gates("[{cells: {arm: other}, toll: {atMost: 10%}}, {toll: {atLeast: 1%}}]").expect("are good");
        assert_eq!(toll[0].condition.to_string(), "toll at most 10%");
        assert_eq!(toll[1].condition.to_string(), "toll at least 1%");
    }

    #[test]
    fn all_that_is_wrong_with_gates_is_told() {
        for (written, told) in [
            (
                "[{ratio: {of: memory, to: native, atMost: 90%}}]",
                &["unknown variant `memory`, expected "][..],
            ),
            ("[{ratio: {atMost: 90%}}]", &["missing field `to`"]),
            ("[{ratio: {to: native}}]", &["must say exactly one of `atMost: 10%`, `atLeast: 10%`"]),
            (
                "[{ratio: {to: nativ, within: 60%}}]",
                &["no arm `nativ`", "60% is out of range: write more than 0% and at most 50%"],
            ),
            (
                "[{cells: {arm: other}, ratio: {to: other, within: 0%}}]",
                &["`other` relative to itself", "0% is out of range"],
            ),
            ("[{firstFrame: {atMost: 5}}]", &["`5` has no unit"]),
            ("[{cpu: {atMost: 5MiB}}]", &["`5MiB` has an unknown unit: a duration"]),
            (
                "[{memory: {atMost: 1MiB, atLeast: 1B}}]",
                &["must say exactly one of `atMost: 64KiB` and `atLeast: 64KiB`"],
            ),
            ("[{exitsPerFrame: {atMost: -1}}]", &["-1 is out of range: write 0 or more"]),
            ("[{exitsPerFrame: {atMost: .inf}}]", &["floating point `.inf`, expected a number"]),
            (
                "[{}]",
                &["must be exactly one condition: `toll: {atMost: 10%}`, `ratio: {to: ARM, atLeast: 10%}`, "],
            ),
            (
                "[{memory: {atMost: 1MiB}, toll: {atMost: much%}}]",
                &["must be exactly one condition", "`much%` is no percentage"],
            ),
            ("[{memry: {atMost: 1MiB}}]", &["did you mean `memory`?"]),
            (
                "[{toll: }, {cells: {arm: native}, toll: {atMost: 10%}}]",
                &["must be exactly one condition", "`native` is the baseline"],
            ),
        ] {
            let found = gates(written).expect_err(written);
            assert_eq!(found.len(), told.len(), "{written}: {found:#?}");
            for words in told {
                assert!(found.iter().any(|message| message.contains(words)), "{written}: {found:#?}");
            }
        }
    }
}
