package expr

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
	"millrace/schemas"
)

var update = flag.Bool("update", false, "write the current messages to the golden files")

// TestMessages checks the golden files in testdata/messages. NAME.in has lines of
// "key: value", an empty line, and an expression. NAME.out has its faults. The keys
// are
//
//	on:    event types, or Everything, which has a field of every type
//	want:  "filter" (the default), the path of a field to set, or "state.PATH"
//	state: the record under state; then there is no clock, as in a fold
//
// To add a case, write its .in and run the test with -update. Then read the .out: a
// good message says what is wrong, where, and how to fix it.
func TestMessages(t *testing.T) {
	files, err := filepath.Glob("testdata/messages/*.in")
	if err != nil || len(files) < 40 {
		t.Fatalf("found %d cases (%v), want at least 40", len(files), err)
	}
	for _, file := range files {
		in, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := messagesOf(t, file, string(in))
		out := strings.TrimSuffix(file, ".in") + ".out"
		if *update {
			if err := os.WriteFile(out, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s\ngot\n%s\nwant\n%s", file, got, want)
		}
	}
}

func messagesOf(t *testing.T, file, in string) string {
	t.Helper()
	var out strings.Builder
	cases := casesOf(t, file, in)
	for _, c := range cases {
		src, err := c.target, c.targetErr
		if err == nil {
			src = c.src
			_, err = c.env.Compile(c.src, c.want)
		}
		if err == nil {
			fmt.Fprintf(&out, "%s: no fault\n", c.typ)
			continue
		}
		printFaults(&out, src, c.typ, len(cases) > 1, err)
	}
	return out.String()
}

// messageCase is one expression of testdata/messages for one event type.
type messageCase struct {
	typ, src  string
	env       *Env
	want      Want
	target    string // the path of the field to set
	targetErr error  // the fault of this path
}

// casesOf reads a .in file.
func casesOf(t *testing.T, file, in string) (cases []messageCase) {
	t.Helper()
	header, src, ok := strings.Cut(in, "\n\n")
	if !ok {
		t.Fatalf("%s has no empty line", file)
	}
	src = strings.TrimSuffix(src, "\n")
	keys := map[string]string{"want": "filter"}
	for _, line := range strings.Split(header, "\n") {
		key, value, _ := strings.Cut(line, ":")
		keys[key] = strings.TrimSpace(value)
	}
	if strings.HasPrefix(src, "repeat ") { // a long expression: "repeat N BEFORE MIDDLE AFTER" is N times BEFORE, MIDDLE, N times AFTER
		var n int
		var before, middle, after string
		if _, err := fmt.Sscanf(src, "repeat %d %s %s %s", &n, &before, &middle, &after); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		src = strings.Repeat(before, n) + middle + strings.Repeat(after, n)
	}
	for _, typ := range strings.Fields(keys["on"]) {
		roots := []Root{{Schema: schemaNamed(t, typ), Consts: map[string]string{"type": typ}}}
		if keys["state"] != "" {
			roots = append(roots, Root{Name: "state", Schema: schemaNamed(t, keys["state"]), View: 1})
		}
		c := messageCase{typ: typ, src: src, env: newEnv(t, roots...), want: Condition("a filter")}
		c.env.Clock = func() time.Time { return at }
		if keys["state"] != "" {
			c.env.Clock = nil
		}
		if path, ok := strings.CutPrefix(keys["want"], "state."); ok {
			n := roots[1].Schema.Root().Field(path).Type
			c.want = Value(n, path, roots[1].Schema.Name())
		} else if keys["want"] != "filter" {
			c.target = keys["want"]
			target, err := c.env.Target(c.target)
			if c.targetErr = err; err == nil {
				c.want = target.Want()
			}
		}
		cases = append(cases, c)
	}
	return cases
}

// printFaults prints each fault as the command line does: position, message, the
// line with a caret, hint.
func printFaults(out *strings.Builder, src, typ string, several bool, err error) {
	for _, f := range PlaceErrors(Source{Text: src, Line: 1, Col: 1}, typ, err) {
		before := []rune(src)[:f.Offset]
		line, start := 1, 0
		for i, c := range before {
			if c == '\n' {
				line, start = line+1, i+1
			}
		}
		if several {
			fmt.Fprintf(out, "%s, ", f.Type)
		}
		fmt.Fprintf(out, "%d:%d: %s\n", line, f.Offset-start+1, f.Msg)
		text, _, _ := strings.Cut(string([]rune(src)[start:]), "\n")
		if len(text) <= 160 {
			fmt.Fprintf(out, "  %s\n  %s^\n", text, strings.Repeat(" ", f.Offset-start))
		}
		if f.Hint != "" {
			fmt.Fprintf(out, "  hint: %s\n", f.Hint)
		}
	}
}

func schemaNamed(t testing.TB, name string) *codec.Schema {
	t.Helper()
	switch name {
	case "Everything":
		return parse(t, everything)
	case "Basket":
		return parse(t, basketState)
	case "Added":
		return parse(t, addedEvent)
	}
	text, err := schemas.FS.ReadFile(name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

// CEL's messages are matched by their English. This test fails when an update of
// cel-go changes a message: either the message has no rule any more, or a rule has no
// message. A new rule needs a case in testdata/messages.
func TestEveryMessageOfTheTypeCheckerHasARule(t *testing.T) {
	files, err := filepath.Glob("testdata/messages/*.in")
	if err != nil {
		t.Fatal(err)
	}
	used := map[*rule]bool{}
	for _, file := range files {
		in, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range casesOf(t, file, string(in)) {
			if c.targetErr != nil {
				continue
			}
			for _, msg := range checkerMessages(c.env, c.src, c.want) {
				r, _ := ruleFor(msg)
				if r == nil {
					t.Errorf("%s: no rule matches the message %q", file, msg)
				}
				used[r] = true
			}
		}
	}
	for i := range rules {
		if !used[&rules[i]] {
			t.Errorf("no message matches the rule %s", rules[i].message)
		}
	}
}

// checkerMessages returns the messages of CEL's type-checker, as [Env.check] receives
// them.
func checkerMessages(env *Env, src string, want Want) (out []string) {
	parsed, issues := env.cel.Parse(src)
	if issues.Err() != nil {
		return nil
	}
	r := newResolver(env, src, parsed.NativeRep())
	r.text = want.node != nil && kindOf(want.node.NotNull()) == types.StringKind
	r.walk(parsed.NativeRep().Expr())
	if want.node != nil {
		r.shape(parsed.NativeRep().Expr(), want.node)
	}
	_, issues = env.cel.Check(parsed)
	for _, e := range issues.Errors() {
		out = append(out, e.Message)
	}
	return out
}
