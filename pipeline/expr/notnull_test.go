package expr

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/expr/nulls"
)

const sparse = `{"type":"record","name":"Sparse","fields":[
	{"name":"s","type":"string"},
	{"name":"n","type":"long"},
	{"name":"email","type":["null","string"]},
	{"name":"amount","type":["null","long"]},
	{"name":"ok","type":["null","boolean"]},
	{"name":"at","type":["null",{"type":"long","logicalType":"timestamp-micros"}]},
	{"name":"tags","type":{"type":"map","values":"string"}},
	{"name":"counts","type":{"type":"map","values":["null","long"]}},
	{"name":"more","type":["null",{"type":"map","values":"string"}]},
	{"name":"texts","type":{"type":"array","items":["null","string"]}},
	{"name":"maybe","type":["null",{"type":"array","items":"string"}]},
	{"name":"items","type":{"type":"array","items":{"type":"record","name":"Item","fields":[
		{"name":"id","type":"string"},
		{"name":"price","type":["null","long"]},
		{"name":"attrs","type":{"type":"map","values":"string"}}]}}},
	{"name":"after","type":["null",{"type":"record","name":"After","fields":[
		{"name":"id","type":"string"},
		{"name":"email","type":["null","string"]}]}]},
	{"name":"any","type":["null","string","long"]},
	{"name":"both","type":["string","long"]}]}`

// Each expression has one warning, or several with the same hint. The hint is the
// expression with a guard, and that has no warning.
func TestAPossibleNullIsAWarningWithTheGuardedExpression(t *testing.T) {
	env := newEnv(t, Root{Schema: parse(t, sparse)})
	for _, test := range []struct{ src, hint string }{
		{"email.endsWith('.com')", "email != null && email.endsWith('.com')"},
		{"amount > 3", "amount != null && amount > 3"},
		{"n > amount", "amount != null && n > amount"},
		{"amount > 3 && n > 1", "amount != null && amount > 3 && n > 1"},
		{"n > 1 || amount > 3", "n > 1 || amount != null && amount > 3"},
		{"n > 1 || (amount > 3)", "n > 1 || (amount != null && amount > 3)"},
		{"!email.contains('@')", "email != null && !email.contains('@')"},
		{"at > timestamp('2026-01-01T00:00:00Z')", "at != null && at > timestamp('2026-01-01T00:00:00Z')"},
		{"tags.region == 'eu'", "has(tags.region) && tags.region == 'eu'"},
		{"tags['re-gion'] == 'eu'", "'re-gion' in tags && tags['re-gion'] == 'eu'"},
		{"tags[s] == 'eu'", "s in tags && tags[s] == 'eu'"},
		{"tags.region == null", "has(tags.region) && tags.region == null"},
		{"more.region == 'eu'", "more != null && has(more.region) && more.region == 'eu'"},
		{"has(counts.a) && counts.a > 1", "has(counts.a) && counts.a != null && counts.a > 1"},
		{"texts[0].size() > 1", "texts[0] != null && texts[0].size() > 1"},
		{"texts.first().size() > 1", "texts.first() != null && texts.first().size() > 1"},
		{"maybe.size() > 1", "maybe != null && maybe.size() > 1"},
		{"'a' in maybe", "maybe != null && 'a' in maybe"},
		{"maybe.exists(m, m == 'a')", "maybe != null && maybe.exists(m, m == 'a')"},
		{"items.exists(i, i.price > 3)", "items.exists(i, i.price != null && i.price > 3)"},
		{"items.exists(i, i.attrs.color == 'red')", "items.exists(i, has(i.attrs.color) && i.attrs.color == 'red')"},
		{"items.map(i, i.price + 1).size() > 1", "items.map(i, i.price != null ? i.price + 1 : 0).size() > 1"},
		{"size(items.filter(i, i.price > 3)) > 0", "size(items.filter(i, i.price != null && i.price > 3)) > 0"},
		{"items[0].price > 3", "items[0].price != null && items[0].price > 3"},
		{"after.id == 'a'", "after != null && after.id == 'a'"},
		{"has(after.email)", "after != null && has(after.email)"},
		{"any.size() > 1", "any != null && any.size() > 1"},
		{"(amount > 3 ? 1 : 2) == n", ""}, // a guard inside parentheses of a comparison
		{"email.size() > 3 ? amount > 1 : n > 1", ""},
		{"{'a': 1}[s] > 0", "s in {'a': 1} && {'a': 1}[s] > 0"},
	} {
		p, err := env.Compile(test.src, Condition("a filter"))
		if err != nil {
			t.Errorf("%s: %v", test.src, err)
			continue
		}
		warns := p.Warnings()
		if len(warns) == 0 {
			t.Errorf("%s has no warning", test.src)
			continue
		}
		for _, w := range warns {
			hint, ok := strings.CutPrefix(w.Hint, "write ")
			if !ok || test.hint != "" && hint != test.hint {
				t.Errorf("%s: %d: %s; %s\n  want the hint %s", test.src, w.Offset, w.Msg, w.Hint, test.hint)
				continue
			}
			p, err := env.Compile(hint, Condition("a filter"))
			if err != nil {
				t.Errorf("%s: the hint %s: %v", test.src, hint, err)
			} else if test.hint != "" && len(p.Warnings()) > 0 {
				t.Errorf("%s: the hint %s has warnings: %v", test.src, hint, p.Warnings())
			}
		}
	}
}

func TestAPossibleNullInAValueIsAWarningWithADefault(t *testing.T) {
	schema := parse(t, sparse)
	env := newEnv(t, Root{Schema: schema})
	for _, test := range []struct{ field, src, hint string }{
		{"n", "amount + 1", "amount != null ? amount + 1 : 0"},
		{"amount", "amount + 1", "amount != null ? amount + 1 : null"},
		{"s", "n > 1 ? email + 'x' : 'y'", "n > 1 ? (email != null ? email + 'x' : '') : 'y'"},
		{"s", "tags.region", "has(tags.region) ? tags.region : ''"},
		{"s", "string(at)", "at != null ? string(at) : ''"},
		{"at", "at.truncate('day')", "at != null ? at.truncate('day') : null"},
	} {
		p, err := env.Compile(test.src, Value(schema.Root().Field(test.field).Type, test.field, "Sparse"))
		if err != nil || len(p.Warnings()) != 1 || p.Warnings()[0].Hint != "write "+test.hint {
			t.Errorf("%s: %v, warnings %v, want the hint %s", test.src, err, p.Warnings(), test.hint)
			continue
		}
		if p, err = env.Compile(test.hint, Value(schema.Root().Field(test.field).Type, test.field, "Sparse")); err != nil || len(p.Warnings()) > 0 {
			t.Errorf("the hint %s: %v, warnings %v", test.hint, err, p.Warnings())
		}
	}
}

func TestAGuardedValueHasNoWarning(t *testing.T) {
	schema := parse(t, sparse)
	for _, src := range []string{
		"amount != null && amount > 3", "null != amount && amount > 3", "amount == null || amount > 3", "!(amount == null) && amount > 3",
		"amount == null ? true : amount > 3", "amount != null ? amount > 3 : false", "!(amount == null || amount < 3)",
		"amount == 3", "email != 'x'", "email in ['a', 'b']", "email in ['a', 'b'] && email.size() > 1", "email == 'a' && email.size() == 1", "amount == n && amount > 1",
		"amount != null && n > 1 && amount > 3 && amount < 5", "amount != null && (n > 1 || amount > 3)", "(amount != null || n > 1) && n > 2",
		"has(tags.region) && tags.region == 'eu'", "'region' in tags && tags.region == 'eu'", "'region' in tags && tags['region'] == 'eu'", "has(tags.region) && tags['region'] == 'eu'",
		"!('region' in tags) || tags.region == 'eu'", "s in tags && tags[s] == 'eu'", "'region' in tags ? tags.region == 'eu' : false",
		"more != null && 'a' in more && more.a == 'x'", "has(counts.a) && counts.a != null && counts.a > 1", "has(counts.a) && counts.a == 3",
		"texts.exists(x, x != null && x.size() > 1)", "texts.filter(x, x != null).exists(x, x.size() > 1)", "texts.filter(x, x != null).map(y, y + '!').size() > 1",
		"items.exists(i, i.price != null && i.price > 3)", "items.filter(i, i.price != null).all(i, i.price > 3)", "items.filter(i, has(i.price)).map(i, i.price + 1).size() > 0",
		"items.filter(i, 'c' in i.attrs).exists(j, j.attrs.c == 'x')", "items[0].price != null && items[0].price > 1", "items.first().price != null && items.first().price > 1",
		"after != null && after.id == 'a'", "after != null && has(after.email) && after.email.size() > 1", "after != null && after.email != null && after.email.size() > 1",
		"after == null || after.email == null || after.email.contains('@')", "after == null || after.email == 'x'",
		"any == null || string(dyn(any)) == 'a'", "any == 'a'", "both == 'a'", "ok == true", "ok != null && ok", "at == null || at > timestamp(0)", "{'a': 1}['a'] == 1", "{'a': 1, 'b': 2}.a == 1",
		"s in {'a': 1} ? {'a': 1}[s] > 0 : false", "tags.exists(k, tags[k] == 'x')", "tags.exists(k, k == 'a')", "tags.transformList(k, v, v + k).size() > 0", "tags.with('a', 'b').a == 'b'",
		"items.sortBy(i, i.id)[0].id == 'a'", "items.map(i, i.price == null ? 0 : i.price).exists(p, p > 3)", "[n, 2].exists(x, x > 1)", "type(email) == string", "maybe != null && maybe.exists(m, m == 'a')",
		"lists.range(3).exists(i, i > 1)", "s.split(',').exists(x, x == 'a')",
	} {
		env := newEnv(t, Root{Schema: schema})
		p, err := env.Compile(src, Condition("a filter"))
		if err != nil {
			t.Errorf("%s: %v", src, err)
		} else if len(p.Warnings()) > 0 {
			t.Errorf("%s: %v", src, p.Warnings())
		}
	}
	for field, sources := range map[string][]string{
		"n":     {"amount != null ? amount : 0", "amount == null ? 0 : amount + 1", "has(counts.a) && counts.a != null ? counts.a : 0"},
		"texts": {"texts + [email]", "texts", "texts.map(x, x)", "items.map(i, i.id)"},
		"maybe": {"null", "texts.filter(x, x != null)", "maybe", "maybe != null ? maybe + [s] : [s]"},
		"tags":  {"tags.with('a', s)", "more != null ? more : tags", "tags.with('a', email != null ? email : '')"},
		"items": {"items + [{'id': s, 'price': amount, 'attrs': tags}]", "items.filter(i, i.price != null)"},
	} {
		for _, src := range sources {
			env := newEnv(t, Root{Schema: schema})
			p, err := env.Compile(src, Value(schema.Root().Field(field).Type, field, "Sparse"))
			if err != nil {
				t.Errorf("%s: %v", src, err)
			} else if len(p.Warnings()) > 0 {
				t.Errorf("%s: %v", src, p.Warnings())
			}
		}
	}
}

// What an earlier condition ensures needs no second guard, until the field changes.
func TestTheConditionsOfEarlierStagesCount(t *testing.T) {
	env := newEnv(t, Root{Schema: parse(t, sparse)})
	before, err := env.Compile("amount != null && 'region' in tags && email == 'x'", Condition("a filter"))
	if err != nil {
		t.Fatal(err)
	}
	const src = "amount > 3 && tags.region == 'eu' && email.size() > 1"
	warnings := func(known nulls.Facts) int {
		p, err := env.Knowing(known).Compile(src, Condition("a filter"))
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Warnings())
	}
	known := before.Ensures(true)
	if n := warnings(known); n != 0 {
		t.Errorf("after the condition: %d warnings", n)
	}
	if n := warnings(before.Ensures(false)); n != 3 {
		t.Errorf("after the opposite: %d warnings, want 3", n)
	}
	if n := warnings(known.Without("amount")); n != 1 {
		t.Errorf("after amount changed: %d warnings, want 1", n)
	}
	if n := warnings(known.Without("tags").Without("n")); n != 1 {
		t.Errorf("after tags changed: %d warnings, want 1", n)
	}
	// A root of another place does not inherit facts about a field of its name.
	if p, err := env.Compile("amount == 1", Condition("a filter")); err != nil || len(p.Ensures(true)) != 1 {
		t.Errorf("%v, %v", err, p.Ensures(true))
	}
}

// isNullError reports whether an evaluation failed because of null or a missing entry.
func isNullError(src string, err error) bool {
	if err == nil {
		return false
	}
	shown := src
	if runes := []rune(src); len(runes) > 200 {
		shown = string(runes[:200]) + "..."
	}
	for _, text := range []string{"null", "has no entry", "no such key", "no such overload"} {
		if strings.Contains(strings.TrimPrefix(err.Error(), "expression: "+shown), text) {
			return true
		}
	}
	return false
}

// sparseText returns a random expression over the fields of sparse.
func sparseText(t *rapid.T, kind string, depth int) string {
	one := func(options ...string) string { return rapid.SampledFrom(options).Draw(t, kind) }
	sub := func(kind string) string { return sparseText(t, kind, depth-1) }
	if depth <= 0 {
		switch kind {
		case "bool":
			return one("ok", "ok == true", "n > 1", "amount != null", "email == null", "has(tags.a)", "'a' in tags", "after != null", "more != null", "texts.size() > 0", "has(counts.a)", "counts.a != null")
		case "int":
			return one("n", "amount", "1", "counts.a", "items[0].price", "counts['a']")
		case "string":
			return one("s", "email", "'a'", "tags.a", "tags['a']", "texts[0]", "after.id", "after.email", "more.a", "tags[s]", "texts.first()")
		}
		return one("texts", "maybe", "items.map(i, i.id)", "['a', email]", "[s]")
	}
	switch kind {
	case "bool":
		switch rapid.IntRange(0, 13).Draw(t, "form") {
		case 0, 1, 2:
			return "(" + sub("bool") + " && " + sub("bool") + ")"
		case 3, 4:
			return "(" + sub("bool") + " || " + sub("bool") + ")"
		case 5:
			return "!" + "(" + sub("bool") + ")"
		case 6:
			return "(" + sub("bool") + " ? " + sub("bool") + " : " + sub("bool") + ")"
		case 7:
			return sub("int") + one(" > ", " == ", " != ", " <= ") + sub("int")
		case 8:
			return sub("string") + one(" == ", " != ", " < ") + sub("string")
		case 9:
			return "(" + sub("string") + ")" + one(".contains(", ".startsWith(") + sub("string") + ")"
		case 10:
			return sub("list") + one(".exists(x, ", ".all(x, ") + one("x == 'a'", "x != null && x.size() > 1", "x.size() > 1", "x == null") + ")"
		case 11:
			return "(" + sub(one("int", "string")) + ") " + one("!=", "==") + " null"
		case 12:
			return "items." + one("exists", "all") + "(i, " + one("i.price > 1", "i.price != null && i.price > n", "i.attrs.a == 'b'", "'a' in i.attrs && i.attrs.a == s", "has(i.price)", sub("bool")) + ")"
		}
		return sub("string") + " in " + sub("list")
	case "int":
		switch rapid.IntRange(0, 3).Draw(t, "form") {
		case 0:
			return "(" + sub("int") + " + " + sub("int") + ")"
		case 1:
			return "(" + sub("bool") + " ? " + sub("int") + " : " + sub("int") + ")"
		case 2:
			return "size(" + sub("string") + ")"
		}
		return "int(" + sub("list") + ".size())"
	case "string":
		switch rapid.IntRange(0, 2).Draw(t, "form") {
		case 0:
			return "(" + sub("string") + " + " + sub("string") + ")"
		case 1:
			return "(" + sub("bool") + " ? " + sub("string") + " : " + sub("string") + ")"
		}
		return "string(" + sub("int") + ")"
	}
	switch rapid.IntRange(0, 3).Draw(t, "form") {
	case 0:
		return "(" + sub("list") + " + " + sub("list") + ")"
	case 1:
		return sub("list") + ".filter(x, " + one("x != null", "x != null && "+sub("bool"), "x == 'a'", sub("bool")) + ")"
	case 2:
		return "(" + sub("bool") + " ? " + sub("list") + " : " + sub("list") + ")"
	}
	return sub("list") + ".map(x, " + one("x", "x == null ? '' : x + 'b'", sub("string")) + ")"
}

// An expression without a warning never fails because of null or a missing entry.
func TestNoWarningMeansNoNullFails(t *testing.T) {
	schema := parse(t, sparse)
	env := newEnv(t, Root{Schema: schema})
	compiled, clean := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]string{"bool", "bool", "bool", "int", "string", "list"}).Draw(t, "kind")
		src := sparseText(t, kind, rapid.IntRange(0, 4).Draw(t, "depth"))
		want := Condition("a test")
		if kind != "bool" {
			name := rapid.SampledFrom(map[string][]string{"int": {"n", "amount"}, "string": {"s", "email"}, "list": {"texts", "maybe"}}[kind]).Draw(t, "target")
			want = Value(schema.Root().Field(name).Type, name, "Sparse")
		}
		p, err := env.Compile(src, want)
		if err != nil {
			return
		}
		if compiled++; len(p.Warnings()) > 0 {
			return
		}
		clean++
		bind(p, schema)
		for range 12 {
			v := view(t, schema, body(t, schema.Root()))
			if want.node == nil {
				_, err = p.Bool(v)
			} else {
				_, err = p.Append(nil, v)
			}
			if isNullError(src, err) {
				t.Fatalf("%s has no warning, but: %v", src, err)
			}
			if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Fatal(err)
			}
		}
	})
	t.Logf("%d expressions compile, %d without a warning", compiled, clean)
	if clean*20 < compiled {
		t.Errorf("only %d of %d expressions have no warning", clean, compiled)
	}
}
