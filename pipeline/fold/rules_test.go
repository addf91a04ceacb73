package fold

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// rowSpec folds changes of rows: one type with an operation.
func rowSpec(t testing.TB, rules ...On) Spec {
	event := parse(t, `{"type":"record","name":"Change","fields":[{"name":"op","type":"string"},{"name":"n","type":"long"}]}`)
	state := parse(t, `{"type":"record","name":"Row","fields":[{"name":"n","type":"long","default":0},{"name":"sum","type":"long","default":0}]}`)
	return Spec{Name: "rows", Types: []*codec.Schema{event}, State: state, Bare: &expr.Bare{}, On: rules, Tombstones: DeleteByTombstones}
}

func change(op string, n int64) []byte { return codec.AppendLong(codec.AppendString(nil, op), n) }

var rowSets = []Set{{src("n"), src("n")}, {src("sum"), src("state.sum + n")}}

// fed feeds an operation to an aggregate; "" is a tombstone.
func fed(t testing.TB, f *Folder, a *Aggregate, op string, n int64) Outcome {
	t.Helper()
	typ, body := 0, change(op, n)
	if op == "" {
		typ, body = Tombstone, nil
	}
	if _, err := f.Read(typ, body, Origin{Key: []byte("k"), Time: n}); err != nil {
		t.Fatal(err)
	}
	got, err := f.ApplyInPlace(a)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRulesOfATypeDecideWhatAnEventDoes(t *testing.T) {
	for _, test := range []struct {
		name  string
		rules []On
		ops   string // one letter each; . is a tombstone
		want  string // outcomes, then version, status and state
	}{
		{"a condition deletes", []On{{Set: rowSets, DeleteIf: src("op == 'd'")}}, "cud", `[0 0 0] 3 deleted {"n":2,"sum":3}`},
		{"and a late event does not restore", []On{{Set: rowSets, DeleteIf: src("op == 'd'")}}, "cdu", `[0 0 1] 2 deleted {"n":1,"sum":1}`},
		{"revive", []On{{Set: rowSets, DeleteIf: src("op == 'd'"), Revive: true}}, "cdc", `[0 0 0] 3 live {"n":2,"sum":2}`},
		{"no rule applies", []On{{When: src("op == 'c' || state.n > 0"), Set: rowSets}}, "u", `[3] 0 live `},
		{"a rule sees the state", []On{{When: src("op == 'c' || state.sum > 0"), Set: rowSets}}, "ucu", `[3 0 0] 2 live {"n":2,"sum":3}`},
		{"the first that applies", []On{{When: src("op == 'd'"), Delete: true}, {When: src("op == 'c'"), Set: rowSets, Revive: true}, {Set: rowSets}}, "cduc", `[0 0 1 0] 3 live {"n":3,"sum":3}`},
		{"a tombstone deletes", []On{{Set: rowSets}}, "cu.", `[0 0 0] 3 deleted {"n":1,"sum":1}`},
		{"twice is the same", []On{{Set: rowSets}}, "cu..", `[0 0 0 3] 3 deleted {"n":1,"sum":1}`},
		{"of nothing", []On{{Set: rowSets}}, ".", `[3] 0 live `},
		{"an inserted row lives again", []On{{Set: rowSets}}, "cu.c", `[0 0 0 0] 4 live {"n":3,"sum":3}`},
		{"after a delete and a tombstone", []On{{Set: rowSets, DeleteIf: src("op == 'd'")}}, "ccd.u", `[0 0 0 0 0] 5 live {"n":4,"sum":4}`},
	} {
		f := compile(t, rowSpec(t, test.rules...))
		folder := f.NewFolder()
		var a Aggregate
		var got []Outcome
		for i, op := range test.ops {
			if op == '.' {
				got = append(got, fed(t, folder, &a, "", int64(i)))
				continue
			}
			got = append(got, fed(t, folder, &a, string(op), int64(i)))
		}
		state := ""
		if a.Version > 0 {
			state = text(t, f.State().Root(), a.State)
		}
		if have := fmt.Sprint(got, a.Version, " ", a.Status(), " ", state); have != test.want {
			t.Errorf("%s:\n%s, want\n%s", test.name, have, test.want)
		}
	}
}

func TestRulesWithFaults(t *testing.T) {
	spec := rowSpec(t, On{Set: rowSets}, On{When: src("op == 'c'")})
	_, faults := Compile(spec)
	if len(faults) != 1 || faults[0].Msg != "rule 2 never applies: rule 1 has no condition" {
		t.Errorf("faults %v", faults)
	}
	spec = rowSpec(t, On{When: src("n"), DeleteIf: src("op")})
	if _, faults = Compile(spec); len(faults) != 2 {
		t.Errorf("faults %v", faults)
	}
	numbered := parse(t, `{"type":"record","name":"N","fields":[{"name":"id","type":"string"},{"name":"sequence","type":"long"}]}`)
	spec = Spec{Name: "n", Types: []*codec.Schema{numbered}, Key: src("id"), State: spec.State, On: []On{{When: src("id != ''")}}}
	if _, faults = Compile(spec); len(faults) != 1 {
		t.Errorf("an ignored event with a number would be a gap: %v", faults)
	}
	spec.On = append(spec.On, On{})
	compile(t, spec)
}

// A condition that fails rejects the event, and the aggregate is unchanged.
// A rule knows that its own condition is true, and those of the rules before it are false.
func TestTheConditionsOfRulesGuardAgainstNull(t *testing.T) {
	event := parse(t, `{"type":"record","name":"Change","fields":[{"name":"op","type":"string"},{"name":"n","type":["null","long"],"default":null}]}`)
	for _, test := range []struct {
		name  string
		rules []On
		want  string // the places of warnings, as index of a rule
	}{
		{"no condition", []On{{Set: []Set{{src("n"), src("n + 1")}}}}, "[0]"},
		{"its own", []On{{When: src("n != null"), Set: []Set{{src("n"), src("n + 1")}}, DeleteIf: src("n > 7")}}, "[]"},
		{"its own does not tell", []On{{When: src("op == 'c'"), Set: []Set{{src("n"), src("n + 1")}}}, {Set: []Set{{src("n"), src("n + 2")}}}}, "[0 1]"},
		{"the one before", []On{{When: src("n == null"), Delete: true}, {When: src("n > 3"), Set: []Set{{src("n"), src("n + 1")}}}, {Set: []Set{{src("sum"), src("n + 2")}}}}, "[]"},
		{"one that is false tells nothing", []On{{When: src("n != null && n > 3"), Delete: true}, {Set: []Set{{src("n"), src("n + 1")}}}}, "[1]"},
	} {
		spec := rowSpec(t)
		spec.Types, spec.On = []*codec.Schema{event}, test.rules
		for i, on := range spec.On {
			for j := range on.Set {
				on.Set[j].Value.Line = i
			}
			spec.On[i].DeleteIf.Line = i
		}
		got := []int{}
		for _, w := range compile(t, spec).Warnings() {
			got = append(got, w.Source.Line)
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("%s: warnings in the rules %v, want %s", test.name, got, test.want)
		}
	}
}

func TestAConditionThatFailsRejectsTheEvent(t *testing.T) {
	for _, on := range []On{{When: src("1 / n > 0")}, {DeleteIf: src("1 / n > 0")}} {
		folder := compile(t, rowSpec(t, on)).NewFolder()
		var a Aggregate
		if _, err := folder.Read(0, change("c", 0), Origin{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		if _, err := folder.Apply(&a); pipeline.ReasonOf(err) != pipeline.ReasonExpression || a.Version != 0 {
			t.Errorf("%v, version %d", err, a.Version)
		}
	}
}

// The text of a rule and the meaning of tombstones are part of the hash.
func TestTheHashCoversRules(t *testing.T) {
	seen := map[string]bool{}
	for _, rules := range [][]On{{{}}, {{Delete: true}}, {{DeleteIf: src("n > 0")}}, {{When: src("n > 0")}}, {{Revive: true}}, {{When: src("n > 0")}, {}}, {{When: src("n > 1")}, {}}} {
		seen[compile(t, rowSpec(t, rules...)).Hash()] = true
	}
	spec := rowSpec(t, On{})
	spec.Tombstones = IgnoreTombstones
	seen[compile(t, spec).Hash()] = true
	if len(seen) != 8 {
		t.Errorf("%d hashes of 8 folds", len(seen))
	}
}

// A fold of any sequence of inserts, updates, deletes and tombstones equals a model,
// however often the aggregate is stored and read.
func TestRowsEqualAModel(t *testing.T) {
	f := compile(t, rowSpec(t, On{When: src("op == 'd'"), Delete: true}, On{When: src("op == 'c'"), Set: rowSets, Revive: true}, On{When: src("state.sum >= 0 && op == 'u'"), Set: rowSets}))
	rapid.Check(t, func(rt *rapid.T) {
		folder := f.NewFolder()
		var a Aggregate
		var version, n, sum int64
		deleted, buried := false, false
		for i := range rapid.IntRange(1, 30).Draw(rt, "events") {
			op := rapid.SampledFrom([]string{"c", "u", "d", "x", ""}).Draw(rt, "op")
			value := rapid.Int64Range(0, 9).Draw(rt, "n")
			switch {
			case op == "x" || op == "" && (version == 0 || buried):
			case op == "":
				version, deleted, buried = version+1, true, true
			case deleted && !buried && op != "c": // late
			default:
				if deleted {
					n, sum = 0, 0
				}
				if version++; op != "d" {
					n, sum = value, sum+value
				}
				deleted, buried = op == "d", false
			}
			fed(t, folder, &a, op, value)
			if rapid.Bool().Draw(rt, "stored") {
				var b Aggregate
				if err := ReadAggregate(AppendAggregate(nil, &a), &b); err != nil {
					rt.Fatal(err)
				}
				a = b
			}
			if a.Version != version || a.Deleted != deleted || a.Tombstone != buried {
				rt.Fatalf("after event %d (%q): version %d, deleted %v, tombstone %v; want %d, %v, %v", i, op, a.Version, a.Deleted, a.Tombstone, version, deleted, buried)
			}
			if want := fmt.Sprintf(`{"n":%d,"sum":%d}`, n, sum); version > 0 && text(t, f.State().Root(), a.State) != want {
				rt.Fatalf("after event %d (%q): %s, want %s", i, op, text(t, f.State().Root(), a.State), want)
			}
		}
	})
}
