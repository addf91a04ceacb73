package expr

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	var out strings.Builder
	types := strings.Fields(keys["on"])
	for _, typ := range types {
		roots := []Root{{Schema: schemaNamed(t, typ), Consts: map[string]string{"type": typ}}}
		if keys["state"] != "" {
			roots = append(roots, Root{Name: "state", Schema: schemaNamed(t, keys["state"]), View: 1})
		}
		env := newEnv(t, roots...)
		env.Clock = func() time.Time { return at }
		if keys["state"] != "" {
			env.Clock = nil
		}
		want := Condition("a filter")
		if path, ok := strings.CutPrefix(keys["want"], "state."); ok {
			n := roots[1].Schema.Root().Field(path).Type
			want = Value(n, path, roots[1].Schema.Name())
		} else if keys["want"] != "filter" {
			target, err := env.Target(keys["want"])
			if err != nil {
				printFaults(&out, keys["want"], typ, len(types) > 1, err)
				continue
			}
			want = target.Want()
		}
		_, err := env.Compile(src, want)
		if err == nil {
			fmt.Fprintf(&out, "%s: no fault\n", typ)
			continue
		}
		printFaults(&out, src, typ, len(types) > 1, err)
	}
	return out.String()
}

// printFaults prints each fault as the command line does: position, message, the
// line with a caret, hint.
func printFaults(out *strings.Builder, src, typ string, several bool, err error) {
	for _, f := range Faults(Source{Text: src, Line: 1, Col: 1}, typ, err) {
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
