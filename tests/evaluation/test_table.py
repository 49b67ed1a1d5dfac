"""Tables on screen."""

from __future__ import annotations

from robust_jax.evaluation import table

LARGEST = {"largest": {"size": 1.0, "excess": 0.0}}


def report(accuracy, n=100):
    rate = {"accuracy": accuracy, "interval": [accuracy, accuracy], "n": n}
    return {"clean": rate, "attacks": {}, "worst_case": rate | {"accuracy": accuracy / 2}, "warnings": []}


def test_a_line_tells_each_other_evaluation(capsys):
    attacked = report(0.98) | {"attacks": {"shift": {}}}
    held = {"runs/a": {"test-first_100": attacked, "test-seed_3": report(0.9, 360)}, "runs/b": {}}
    table.show_stored(held, besides=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == [
        "a also holds:",
        "  test-first_100  n = 100  clean 98.0%  worst case 49.0%",
        "  test-seed_3     n = 360  clean 90.0%         no attack",
    ]
    table.show_stored(held)
    text = capsys.readouterr().out
    assert "a holds:" in text and "b holds no evaluation." in text
    table.show_stored({"a": {f"test-seed_{i}": report(0.9) for i in range(25)}}, besides=True)
    assert "  and 5 more: robust-jax evaluate WORKDIR --list" in capsys.readouterr().out


def test_lines_fit_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(table, "console", lambda: table.Console(width=80))
    held = {"a": {"validation-first_1000-seed_3-" + "x" * 50: report(0.98, 10_000), "test": report(0.5)}}
    table.show_stored(held)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines) and sum("no attack" in line for line in lines) == 2


def test_a_composition_has_a_radius_for_each_part():
    threat = {"perturbation": "flow+additive", "norm": ["linf", "linf"], "radius": [0.155, 8 / 255], "unit": ""}
    assert table.threat_of({"threat": threat}) == "flow+additive linf 0.155, 0.03137"
    assert table.threat_of({"threat": threat | {"norm": ["linf", "l2"]}}) == "flow+additive linf, l2 0.155, 0.03137"
    affine = {"perturbation": "affine", "norm": "linf", "radius": [[20, 2, 2], 0.1], "unit": ""}
    assert table.threat_of({"threat": affine}) == "affine linf [[20, 2, 2], 0.1]"


def test_where_the_table_is_too_wide_intervals_have_lines_of_their_own(monkeypatch, capsys):
    threat = {"perturbation": "flow", "norm": "linf", "radius": 0.155, "unit": "px per axis"}
    entry = report(0.98)["clean"] | {"threat": threat, "settings": {"attack": "pgd", "steps": 20, "restarts": 3}}
    reports = {name: report(0.98) | {"attacks": {"flow_0_155": entry | LARGEST}} for name in ("standard", "fgr")}
    for width, cell in ((120, " 98.0% [98.0, 98.0] "), (80, " [98.0, 98.0] ")):
        monkeypatch.setattr(table, "console", lambda width=width: table.Console(width=width))
        table.show(reports)
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= width for line in lines) and sum(line.count(cell) for line in lines) == 4


def test_workdirs_that_do_not_fit_beside_each_other_have_several_tables(monkeypatch, capsys):
    threat = {"perturbation": "flow", "norm": "linf", "radius": 0.155, "unit": "px per axis"}
    entry = report(0.98)["clean"] | {"threat": threat, "settings": {"attack": "pgd", "steps": 20, "restarts": 3}}
    reports = {f"runs/seed_{i:02}": report(0.98) | {"attacks": {"flow": entry | LARGEST}} for i in range(12)}
    reports["runs/seed_11"] = report(1.0) | {"attacks": {"other": entry | LARGEST}}
    for width, tables in ((300, 1), (120, 3), (60, 12)):
        monkeypatch.setattr(table, "console", lambda width=width: table.Console(width=width))
        table.show(reports)
        text = capsys.readouterr().out
        assert all(len(line) <= width for line in text.splitlines())
        assert text.count("threat") == tables and text.count("Accuracy, n = 100") == 1
        assert text.count("[98.0, 98.0]") == 2 * 11 + 1 and text.count("[100.0, 100.0]") == 1
        assert text.count("× the radius") == 1 and "all: checked: ‖δ‖ is at most 1 ×" in text
        assert all(text.count(f"seed_{i:02}") == 1 for i in range(12))


def test_options_that_are_not_by_default_are_part_of_the_effort():
    given = dict(steps=20, restarts=3, loss="margin", early_stop=True, keep="best", step_size=0.01)
    assert table.effort_of({"settings": {"attack": "pgd", **given}}) == (
        "pgd, 20 steps × 3 restarts, loss=margin, step_size=0.01"
    )
    assert table.effort_of({"settings": {"attack": "own", "steps": 5, "depth": 3}}) == "own, 5 steps, depth=3"
    axes = table.effort_of({"settings": {"attack": "pgd", "steps": 4, "step_size": [0.01, 0.02]}})
    assert axes == "pgd, 4 steps, step_size=[0.01, 0.02]"
    after = table.effort_of({"settings": {"attack": "pgd", "steps": 4}, "after": ["x", "y"]})
    assert after == "pgd, 4 steps, on what x, y left"


def test_worst_cases_of_other_attacks_have_rows_of_their_own():
    def of(radius):
        entry = {"threat": {"perturbation": "flow", "norm": "linf", "radius": radius, "unit": "px"},
                 "settings": {"attack": "pgd", "steps": 4}}  # fmt: skip
        return report(0.5) | {"attacks": {"x": report(0.5)["clean"] | entry, "y": report(0.5)["clean"] | entry}}

    same, other = table.rows_of({"a": of(0.1), "b": of(0.1)}), table.rows_of({"a": of(0.1), "b": of(0.2)})
    assert [row for row in same if row[0] == "worst case"] == [("worst case", "any of them", "")]
    assert [(row[1], list(entries)) for row, entries in other.items() if row[0] == "worst case"] == [
        ("any of x (flow linf 0.1 px), y (flow linf 0.1 px)", ["a"]),
        ("any of x (flow linf 0.2 px), y (flow linf 0.2 px)", ["b"]),
    ]
