package expr

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
)

// hidden lists CEL functions without documentation: no event has an unsigned
// number.
var hidden = []string{"uint"}

func TestEveryFunctionIsDocumented(t *testing.T) {
	env := newEnv(t)
	documented := map[string]bool{}
	for _, f := range Functions() {
		if documented[f.Name] {
			t.Errorf("%s is documented twice", f.Name)
		}
		documented[f.Name] = true
		if f.Group == "" || len(f.Signatures) == 0 || !strings.HasSuffix(f.Doc, ".") && !strings.HasSuffix(f.Doc, "< 5.") && !strings.HasSuffix(f.Doc, "'.") {
			t.Errorf("%s has no group, no signature, or a Doc that is not a sentence: %+v", f.Name, f)
		}
		for _, s := range f.Signatures {
			if strings.ContainsAny(s, "@<") || strings.Contains(s, "google") {
				t.Errorf("%s: signature %q has an internal name of CEL", f.Name, s)
			}
		}
	}
	for name := range env.cel.Functions() {
		public := name[0] >= 'a' && name[0] <= 'z' && !strings.Contains(name, "@") && name != "in"
		if public && !documented[name] && !slices.Contains(hidden, name) {
			t.Errorf("function %s is not documented", name)
		}
	}
}

// Each example in the catalog is true, uses its function, and is cheap.
func TestExamplesOfFunctionsAreTrue(t *testing.T) {
	env := newEnv(t)
	for _, f := range Functions() {
		if f.Example == "" {
			if f.Name != "now" {
				t.Errorf("%s has no example", f.Name)
			}
			continue
		}
		p, err := env.Compile(f.Example, Condition("an example"))
		if err != nil {
			t.Errorf("%s: %s: %v", f.Name, f.Example, err)
			continue
		}
		if ok, err := p.Bool(); err != nil || !ok {
			t.Errorf("%s: %s is %v, %v", f.Name, f.Example, ok, err)
		}
		plain := strings.TrimPrefix(strings.TrimPrefix(f.Name, "math."), "strings.")
		if !strings.Contains(f.Example, plain) {
			t.Errorf("%s: the example %s does not use the function", f.Name, f.Example)
		}
		c, err := env.check(f.Example, Condition("an example"))
		if err != nil {
			t.Fatal(err)
		}
		program, err := env.cel.PlanProgram(c.ast, cel.CostLimit(maxCost))
		if err != nil {
			t.Fatal(err)
		}
		_, details, err := program.Eval(map[string]any{})
		if err != nil {
			t.Fatalf("%s: %v", f.Example, err)
		}
		if cost := details.ActualCost(); cost == nil || *cost > 200 {
			t.Errorf("%s: %s costs %v steps", f.Name, f.Example, *cost)
		}
	}
}

func TestEdgeCasesOfMillraceFunctions(t *testing.T) {
	env := newEnv(t)
	// want is empty if src is true, "false" if it is false, else a part of the error.
	for _, test := range []struct{ src, want string }{
		{"timestamp('2026-01-31T12:34:56.789Z').truncate('second') == timestamp('2026-01-31T12:34:56Z')", ""},
		{"timestamp('2026-01-31T12:34:56.789Z').truncate('minute') == timestamp('2026-01-31T12:34:00Z')", ""},
		{"timestamp('2026-01-31T12:34:56.789Z').truncate('hour') == timestamp('2026-01-31T12:00:00Z')", ""},
		{"timestamp('2026-02-01T00:00:00Z').truncate('week') == timestamp('2026-01-26T00:00:00Z')", ""}, // a Sunday
		{"timestamp('2026-01-26T00:00:00Z').truncate('week') == timestamp('2026-01-26T00:00:00Z')", ""},
		{"timestamp('2026-12-31T23:59:59Z').truncate('quarter') == timestamp('2026-10-01T00:00:00Z')", ""},
		{"timestamp('2026-12-31T23:59:59Z').truncate('month') == timestamp('2026-12-01T00:00:00Z')", ""},
		{"timestamp('1969-12-31T23:59:59Z').truncate('year') == timestamp('1969-01-01T00:00:00Z')", ""},
		{"timestamp('1969-12-31T23:59:59.5Z').truncate(duration('250ms')) == timestamp('1969-12-31T23:59:59.5Z')", ""},
		{"timestamp('1969-12-31T23:59:59.6Z').truncate(duration('250ms')) == timestamp('1969-12-31T23:59:59.5Z')", ""},
		{"timestamp('0001-01-01T00:00:30Z').truncate(duration('1m')) == timestamp('0001-01-01T00:00:00Z')", ""},
		{"timestamp('0001-01-03T00:00:30Z').truncate('week') == timestamp('0001-01-01T00:00:00Z')", ""}, // the first possible day is a Monday
		{"timestamp(0).truncate('fortnight') == timestamp(0)", `unknown unit "fortnight"`},
		{"timestamp(0).truncate(duration('0s')) == timestamp(0)", "the window length 0s is not positive"},
		{"timestamp('2026-01-31T12:34:56.789012Z').format('%d.%m.%Y %H:%M:%S.%L %f %j 100%%') == '31.01.2026 12:34:56.789 789012 031 100%'", ""},
		{"timestamp(0).format('%Q') == ''", "invalid layout: use %Y"},
		{"timestamp(0).format('%') == ''", "invalid layout: use %Y"},
		{"parseTime('2024-060', '%Y-%j') == timestamp('2024-02-29T00:00:00Z')", ""},
		{"parseTime('12:30:00.250', '%H:%M:%S.%L') == timestamp('1970-01-01T12:30:00.250Z')", ""},
		{"parseTime('100%', '100%%') == timestamp(0)", ""},
		{"parseTime('2026-02-29', '%Y-%m-%d') == timestamp(0)", `"2026-02-29" is not a time in the layout "%Y-%m-%d"`},
		{"parseTime('2026-02', '%Y-%m-%d') == timestamp(0)", "is not a time"},
		{"parseTime('2026-02-28x', '%Y-%m-%d') == timestamp(0)", "is not a time"},
		{"parseTime('+026-02-28', '%Y-%m-%d') == timestamp(0)", "is not a time"},
		{"parseTime('0000-01-01', '%Y-%m-%d') == timestamp(0)", "timestamp out of range"},
		{"fromUnixMillis(-1) == timestamp('1969-12-31T23:59:59.999Z')", ""},
		{"fromUnixMillis(9223372036854775807) == timestamp(0)", "timestamp out of range"},
		{"unixMillis(timestamp('1969-12-31T23:59:59.999Z')) == -1", ""},
		{"uuid5('2ed6657d-e927-568b-95e1-2665a8aea6a2', '') == uuid5('2ED6657D-E927-568B-95E1-2665A8AEA6A2', '')", ""},
		{"uuid5('nowhere', 'x') == ''", `the namespace "nowhere" is not a UUID, dns`},
		{"'2ed6657d-e927-568b-95e1-2665a8aea6a'.isUuid()", "false"},
		{"hex.decode('6') == b''", "not hexadecimal"},
		{"hex.encode(b'') == '' && hex.decode('') == b''", ""},
		{"[1].slice(1, 1).first() == 1", "the list is empty"},
		{"[1].slice(1, 1).last() == 1", "the list is empty"},
		{"{'a': 1}.with('a', 2) == {'a': 2}", ""},
		{"{'a': 1}.without('b') == {'a': 1}", ""},
		{"sha256(b'\\xff') == 'a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89'", ""},
		{"{'c': 1, 'a': 2, 'b': 3}.map(k, k) == ['a', 'b', 'c']", ""},
		{"{3: 'c', 1: 'a', 2: 'b'}.transformList(k, v, v) == ['a', 'b', 'c']", ""},
		{"{true: 1, 'x': 2, 2: 3, 1: 4}.map(k, string(k)).size() == 4", ""},
	} {
		p, err := env.Compile(test.src, Condition("a test"))
		ok := false
		if err == nil {
			ok, err = p.Bool()
		}
		switch {
		case test.want == "" && (err != nil || !ok):
			t.Errorf("%s is %v, %v", test.src, ok, err)
		case test.want == "false" && (err != nil || ok):
			t.Errorf("%s is %v, %v", test.src, ok, err)
		case test.want != "" && test.want != "false" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %s", test.src, err, test.want)
		}
	}
}

// The limits stop expressions that would build gigabytes, or run for minutes, from a
// string of 300 kB.
func TestLimitsStopExpensiveExpressions(t *testing.T) {
	env := newEnv(t)
	doubled := func(n int, src string) string {
		for range n {
			src = "(" + src + ".replace('', " + src + "))"
		}
		return src
	}
	big := types.String(strings.Repeat("a", 300_000))
	withBig, err := env.cel.Extend(cel.Variable("big", cel.StringType))
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{
		"big.replace('a', big).size() == 0",
		"big.replace('', big).size() == 0",
		"big.replace('a', 'aaaaaaaaaa', 1000000).size() == 0",
		doubled(6, "'ab'") + ".size() == 0",
		"big.split('').join(big).size() == 0",
		"'%s%s%s%s%s%s%s%s'.format([big, big, big, big, big, big, big, big]).size() == 0",
		"[big, big].map(x, [x, x].map(y, [y, y].map(z, z + z + z + z + z + z + z))).size() == 0",
		"lists.range(1000000000).size() == 0",
		"lists.range(10000).map(x, lists.range(10000)).size() == 0",
		"lists.range(1000).exists(x, lists.range(1000).exists(y, x + y < 0))",
		"lists.range(10000).all(x, sha256(big) != '')",
		"lists.range(10000).all(x, !big.matches('(a*)*b'))",
		"lists.range(10000).all(x, big.contains('b') || true)" + " && [1].all(x, lists.range(10000).map(y, lists.range(10000)).flatten().size() > 0)",
	} {
		ast, issues := withBig.Compile(src)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", src, issues.Err())
		}
		program, err := withBig.Program(ast, cel.CostLimit(maxCost))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, _, err = program.Eval(map[string]any{"big": big})
		if err == nil {
			t.Errorf("%.80s: no error, took %v", src, time.Since(start))
		}
	}
}

func TestStringsThatClosuresBuildAreBounded(t *testing.T) {
	s := parse(t, `{"type":"record","name":"E","fields":[{"name":"s","type":"string"}]}`)
	v := view(t, s, codec.AppendString(nil, strings.Repeat("a", 300_000)))
	p, err := newEnv(t, Root{Schema: s}).Compile("size(s"+strings.Repeat(" + s", 40)+") > 0", Condition("a test"))
	if err != nil {
		t.Fatal(err)
	}
	bind(p, s)
	if _, err := p.Bool(v); err == nil || !strings.Contains(err.Error(), "exceed 4194304 bytes") {
		t.Errorf("got %v", err)
	}
}
