package topology_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// base is a topology that tests append pipelines or projections to.
const base = `name: shop
topics:
  shop.events: {partitions: 6, types: [UserCreated, UserDeleted, OrderCreated, OrderPaid]}
  shop.enriched: {partitions: 6}
  shop.dead_letters: {partitions: 3}
`

// enriched returns base with one pipeline that has these stages.
func enriched(stages string) string {
	return base + "pipelines:\n  enrich:\n    from: shop.events\n    to: shop.enriched\n    dead_letter: shop.dead_letters\n    stages:\n" + stages
}

func loadText(text string) (*topology.Topology, error) {
	return topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(text)},
		topology.Options{Schemas: schemas.FS, LookupEnv: environment, Clock: clock, Stages: kinds()})
}

func mustLoad(t *testing.T, text string) *topology.Topology {
	t.Helper()
	plan, err := loadText(text)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// Input that would expand without bound is rejected quickly.
func TestBombsAreRejected(t *testing.T) {
	laughs := "name: shop\ntopics:\n  a: {partitions: 1, config: &a {"
	for i := range 1000 {
		laughs += fmt.Sprintf("k%d: v, ", i)
	}
	laughs += "}}\n"
	for i := range 1000 {
		laughs += fmt.Sprintf("  b%d: {partitions: 1, config: *a}\n", i)
	}
	for name, test := range map[string]struct{ text, want string }{
		"size":        {strings.Repeat("#", 1<<20+1), "a topology has at most 1048576"},
		"aliases":     {laughs, "more than 100000 names and values"},
		"flow depth":  {"name: " + strings.Repeat("[", 100_000), "nested too deeply"},
		"block depth": {strings.Repeat("- ", 100_000), "nested too deeply"},
		"self":        {"name: shop\ntopics: &a {shop.events: *a}", "has no parameter \"shop.events\""},
		"faults":      {base + strings.Repeat("x: y\n", 5000), "and 49"},
	} {
		_, err := loadText(test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %.300v, want %s", name, err, test.want)
		}
	}
}

func TestFaultsAreMachineReadable(t *testing.T) {
	_, err := loadText(base + "pipeline: {}\nname: again\n")
	var faults topology.Faults
	if !errors.As(err, &faults) || len(faults) != 2 {
		t.Fatalf("got %v", err)
	}
	want := topology.Fault{File: "topology.yaml", Line: 6, Col: 1, Msg: `the topology has no parameter "pipeline"`, Hint: `did you mean "pipelines"?`, Text: "pipeline: {}"}
	if faults[0] != want {
		t.Errorf("got %#v, want %#v", faults[0], want)
	}
	var first topology.Fault
	if !errors.As(err, &first) || first != want {
		t.Errorf("errors.As finds %v", first)
	}
	if got := first.Error(); got != `topology.yaml:6:1: the topology has no parameter "pipeline"` {
		t.Errorf("Error returns %q", got)
	}
}

func TestMessagesContainNoControlCharacters(t *testing.T) {
	_, err := loadText("name: shop\ntopics: {\"\x1b[2J\\e\": {}}\n")
	if err == nil || strings.ContainsRune(err.Error(), 0x1b) {
		t.Errorf("got %q", err)
	}
}

func TestParametersAreDecodedIntoStages(t *testing.T) {
	plan := mustLoad(t, enriched(`
      - forms:
          word: green
          words: [b, a]
          number: ${PARTITIONS}
          duration: 1d12h
          flag: false
          texts: {x: 1, "y": "2"}
          group: {number: 5}
          named: {a: {flag: true}, b:}
          on: [OrderPaid]
          name: all
          on_error: stop
      - forms:
`))
	stages := plan.Pipelines[0].Stages
	if stages[0].OnError != pipeline.Stop || stages[1].OnError != pipeline.DeadLetter || !slices.Equal(stages[0].On, []bool{false, false, false, true}) {
		t.Errorf("stages are %+v", stages)
	}
	show := func(args stage.Args) (out string) {
		for _, a := range args {
			out += fmt.Sprintf("%s %q %d %v %v", a.Name, a.Value.Text, a.Number, a.Duration, a.Flag)
			for _, w := range a.Words {
				out += " " + w.Text
			}
			for _, e := range a.Entries {
				out += fmt.Sprintf(" %s=%s", e.Key.Text, e.Value.Text)
			}
			for _, i := range a.Items {
				out += fmt.Sprintf(" %s%d", i.Key.Text, len(i.Args))
			}
			out += "\n"
		}
		return out
	}
	for i, want := range []string{`word "green" 0 0s false
words "" 0 0s false b a
number "6" 6 0s false
duration "1d12h" 0 36h0m0s false
flag "false" 0 0s false
texts "" 0 0s false x=1 y=2
group "" 0 0s false group1
named "" 0 0s false a1 b0
`, `word "red" 0 0s false
number "3" 3 0s false
duration "10m" 0 10m0s false
flag "true" 0 0s true
`} {
		if got := show(stages[i].Built.(*formsStage).in.Args); got != want {
			t.Errorf("stage %d has\n%swant\n%s", i, got, want)
		}
	}
}

func TestStagesReceiveTablesTopicsAndSchemas(t *testing.T) {
	plan := mustLoad(t, enriched("      - forms: {}\n")+`tables:
  users: {topic: shop.user.snapshots}
projections:
  user: {from: shop.events, key: data.id, state: User, on: {UserCreated: {}}, snapshots: shop.user.snapshots}
`)
	in := plan.Pipelines[0].Stages[0].Built.(*formsStage).in
	if in.Tables["users"] != &plan.Tables[0].Table || in.Tables["users"].Schema.Name() != "shop.User" {
		t.Errorf("tables are %v", in.Tables)
	}
	if want := []string{"shop.events", "shop.enriched", "shop.dead_letters", "shop.user.snapshots"}; !slices.Equal(in.Topics, want) {
		t.Errorf("topics are %v, not %v", in.Topics, want)
	}
	if s, err := in.Schema("Order"); err != nil || s.Name() != "shop.Order" {
		t.Errorf("schema Order is %v, %v", s, err)
	}
	if _, err := in.Schema("Ordr"); err == nil || !strings.Contains(err.Error(), `did you mean "Order"?`) {
		t.Errorf("schema Ordr: %v", err)
	}
	if got := in.Types[2].Env.Clock(); !got.Equal(clock()) {
		t.Errorf("the clock of expressions returns %v", got)
	}
	if in.Types[2].Consts["type"] != "OrderCreated" {
		t.Errorf("constants are %v", in.Types[2].Consts)
	}
}

// An added field is in the output with its value, and later stages can use it.
func TestAddedFieldsAreInTheOutput(t *testing.T) {
	plan := mustLoad(t, enriched(`
      - enrich:
          on: [OrderCreated]
          add:
            data.total_cents: {type: long, value: int(data.total_amount * 100.0)}
            data.coupon: {type: string?, value: "data.total_amount > 1000.0 ? 'big' : null"}
            placed: {type: timestamp-millis, value: timestamp}
          set: {metadata.source: "'test'"}
      - filter: {on: [OrderCreated], keep: data.total_cents == 1250}
      - enrich: {name: twice, on: [OrderCreated], set: {data.total_cents: 2 * data.total_cents, metadata.coupon: "data.coupon == null ? 'none' : 'some'"}}
`[1:]))
	p := plan.Pipelines[0]
	const typ = 2
	out := run(t, p, typ, encode(t, p.Types[typ], orderCreated()))
	var got map[string]any
	if _, err := p.Output[typ].Avro().Decode(out, &got); err != nil {
		t.Fatal(err)
	}
	data, metadata := got["data"].(map[string]any), got["metadata"].(map[string]any)
	if data["total_cents"] != int64(2500) || data["coupon"] != nil || data["user_id"] != "u1" || metadata["source"] != "test" || metadata["coupon"] != "none" {
		t.Errorf("got %v", got)
	}
	if placed, ok := got["placed"].(time.Time); !ok || !placed.Equal(clock()) {
		t.Errorf("placed is %v", got["placed"])
	}
	if _, err := resolve.New(p.Types[typ], p.Output[typ]); err != nil {
		t.Errorf("input events cannot be read with the output schema: %v", err)
	}
	if p.Output[3] != p.Types[3] {
		t.Errorf("the schema of OrderPaid changed to %s", p.Output[3])
	}
}

// A chain belongs to one session. Two chains share no mutable state.
func TestChainsShareNoState(t *testing.T) {
	p := mustLoad(t, enriched(`      - enrich: {on: [OrderCreated], set: {metadata.user: data.user_id, data.user_id: "'x'"}}`+"\n")).Pipelines[0]
	const typ = 2
	body := encode(t, p.Types[typ], orderCreated())
	want := run(t, p, typ, body)
	done := make(chan []byte)
	for range 2 {
		go func() {
			var out []byte
			for range 1000 {
				out = run(t, p, typ, body)
			}
			done <- out
		}()
	}
	for range 2 {
		if got := <-done; !slices.Equal(got, want) {
			t.Errorf("got %x, want %x", got, want)
		}
	}
}

func TestHashDependsOnContentOnly(t *testing.T) {
	first := enriched("      - filter: {keep: \"true\"}\n")
	hash := func(text string) string { return mustLoad(t, text).Hash() }
	want := hash(first)
	for name, same := range map[string]string{
		"comments":            "# comment\n" + first,
		"quotes":              strings.Replace(first, `"true"`, `'true'`, 1),
		"defaults":            strings.Replace(first, "    to:", "    guarantee: exactly_once\n    to:", 1),
		"order of parameters": strings.Replace(first, "{partitions: 6, types: [UserCreated, UserDeleted, OrderCreated, OrderPaid]}", "{types: [UserCreated, UserDeleted, OrderCreated, OrderPaid], partitions: 6}", 1),
		"order of topics":     strings.Replace(strings.Replace(first, "  shop.enriched: {partitions: 6}\n", "", 1), "topics:\n", "topics:\n  shop.enriched: {partitions: 6}\n", 1),
		"a variable's value":  strings.Replace(first, "6", `"${PARTITIONS}"`, 1),
	} {
		if got := hash(same); got != want {
			t.Errorf("%s: the hash changed from %s to %s", name, want, got)
		}
	}
	for name, other := range map[string]string{
		"name":       strings.Replace(first, "name: shop", "name: stall", 1),
		"partitions": strings.Replace(first, "6", "7", 1),
		"condition":  strings.Replace(first, `"true"`, `"1 < 2"`, 1),
		"stages":     first + "      - filter: {name: b, keep: \"true\"}\n",
		"guarantee":  strings.Replace(first, "    to:", "    guarantee: at_least_once\n    to:", 1),
		"on_error":   strings.Replace(first, `"true"`, `"true", on_error: skip`, 1),
	} {
		if got := hash(other); got == want {
			t.Errorf("%s: the hash did not change", name)
		}
	}
	files := fstest.MapFS{}
	entries, err := fs.ReadDir(schemas.FS, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := fs.ReadFile(schemas.FS, e.Name())
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = &fstest.MapFile{Data: text}
	}
	files["OrderPaid.avsc"].Data = []byte(strings.Replace(string(files["OrderPaid.avsc"].Data), `"default": 1`, `"default": 2`, 1))
	plan, err := topology.Load(topology.Source{Text: []byte(first)}, topology.Options{Schemas: files})
	if err != nil {
		t.Fatal(err)
	}
	if plan.Hash() == want {
		t.Error("another schema: the hash did not change")
	}
}

// The example of every stage loads, for all types or for OrderCreated.
func TestExamplesOfStagesLoad(t *testing.T) {
	all := stage.Builtin()
	all["go"] = stage.Go(stage.Func{Name: "tier", New: func(*stage.Fields, map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		return func(context.Context, *pipeline.Event) (pipeline.Verdict, error) { return pipeline.Pass, nil }, stage.Deterministic, nil
	}})
	try := func(name, params string) error {
		text := strings.Replace(enriched("      - "+name+":\n          "+strings.ReplaceAll(params, "\n", "\n          ")+"\n"),
			"topics:\n", "topics:\n  shop.orders: {partitions: 6}\n  shop.users: {partitions: 6}\n", 1)
		_, err := topology.Load(topology.Source{Name: name, Text: []byte(text + `tables:
  users: {topic: shop.user.snapshots}
projections:
  user: {from: shop.events, key: data.id, state: User, on: {UserCreated: {}}, snapshots: shop.user.snapshots}
`)}, topology.Options{Schemas: schemas.FS, Stages: all, File: func(path string) ([]byte, error) { return fs.ReadFile(os.DirFS("testdata/files"), path) }})
		return err
	}
	for name, kind := range all {
		if kind.Doc == "" || kind.Example == "" || kind.Name != name {
			t.Errorf("stage %s has no doc or no example, or its name is %q", name, kind.Name)
		}
		err := try(name, kind.Example)
		if err != nil && try(name, "on: [OrderCreated]\n"+kind.Example) != nil {
			t.Errorf("the example of %s:\n%v", name, err)
		}
	}
}

// Every parameter has a description, and its attributes are consistent.
func TestParametersAreDescribed(t *testing.T) {
	var visit func(where string, params []stage.Param)
	visit = func(where string, params []stage.Param) {
		for _, p := range params {
			if p.Doc == "" || !strings.HasSuffix(p.Doc, ".") && !strings.HasSuffix(p.Doc, ")") {
				t.Errorf("%s %s: the description %q is not a sentence", where, p.Name, p.Doc)
			}
			if p.Default != "" && p.Required {
				t.Errorf("%s %s: a required parameter has a default", where, p.Name)
			}
			if p.Form == stage.Number && p.Max <= p.Min {
				t.Errorf("%s %s: no number is from %d to %d", where, p.Name, p.Min, p.Max)
			}
			visit(where+" "+p.Name, p.Params)
		}
	}
	for name, kind := range stage.Builtin() {
		visit(name, kind.Params)
	}
}

func BenchmarkLoad(b *testing.B) {
	text, err := os.ReadFile("../../topology.yaml")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := topology.Load(topology.Source{Text: text}, topology.Options{Schemas: schemas.FS}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoadMany loads 200 pipelines. The time has to grow linearly with the file.
func BenchmarkLoadMany(b *testing.B) {
	text := base + "pipelines:\n"
	for i := range 200 {
		text += fmt.Sprintf("  p%d: {from: shop.events, to: shop.enriched, dead_letter: shop.dead_letters, stages: [filter: {drop: type == 'UserDeleted'}, enrich: {set: {metadata.pipeline: \"'p%d'\"}}]}\n", i, i)
	}
	for b.Loop() {
		if _, err := loadText(text); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"good", "bad"} {
		files, err := fs.Glob(os.DirFS("testdata/"+dir), "*.yaml")
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range files {
			text, err := os.ReadFile("testdata/" + dir + "/" + name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: text},
			topology.Options{Schemas: schemas.FS, LookupEnv: environment, Stages: kinds()})
		if (plan == nil) == (err == nil) {
			t.Fatalf("plan %v, error %v", plan, err)
		}
		if err == nil {
			_ = dump(plan)
			for _, p := range plan.Pipelines {
				p.Chain()
			}
			return
		}
		var faults topology.Faults
		if !errors.As(err, &faults) {
			t.Fatalf("%T is not Faults", err)
		}
		lines := regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]").Split(string(text), -1)
		for _, fault := range faults {
			if fault.Msg == "" || fault.Line > len(lines)+1 || (fault.Line > 0) != (fault.Col > 0) {
				t.Fatalf("fault %+v", fault)
			}
		}
		if shown := err.Error(); strings.Count(shown, "\n") > 4*101 {
			t.Fatalf("%d lines of faults", strings.Count(shown, "\n"))
		}
	})
}
