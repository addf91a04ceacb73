package expr_test

import (
	"errors"
	"strings"
	"testing"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// An encrypted field may only be copied to a field with the same tag, or compared
// with null.
func TestEncryptedFieldsCannotBeRead(t *testing.T) {
	s, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[
		{"name":"id","type":"string"},
		{"name":"email","type":"string","millrace.pii":true},
		{"name":"nick","type":["null","string"],"millrace.pii":"name"},
		{"name":"plain","type":["null","string"]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	env, err := expr.NewEnv(expr.Root{Schema: s}, expr.Root{Name: "state", Schema: s, View: 1})
	if err != nil {
		t.Fatal(err)
	}
	to := func(name string) expr.Want { return expr.Value(s.Root().Field(name).Type, name, "E") }
	for _, test := range []struct {
		text string
		want expr.Want
		at   int // of the fault, -1 if there is none
	}{
		{"email", to("email"), -1},
		{"state.email", to("email"), -1},
		{"id == 'x' ? email : state.email", to("email"), -1},
		{"nick != null ? nick : state.nick", to("nick"), -1},
		{"nick == null || id == 'x'", expr.Condition("a filter"), -1},
		{"''", to("email"), -1},
		{"null", to("nick"), -1},
		{"email", to("plain"), 0},
		{"email", to("nick"), 0},
		{"nick", to("plain"), 0},
		{"id == 'x' ? email : id", to("plain"), 12},
		{"'<' + email + '>'", to("email"), 6},
		{"email == 'a@b'", expr.Condition("a filter"), 0},
		{"id == email", expr.Condition("a filter"), 6},
		{"id == state.email", expr.Condition("a filter"), 6},
		{"email.size() > 3", expr.Condition("a filter"), 0},
		{"['a', 'b'].exists(x, x == email)", expr.Condition("a filter"), 26},
		{"email == 'x' ? email : email", to("email"), 0},
	} {
		_, err := env.Compile(test.text, test.want)
		var faults expr.Errors
		switch {
		case err == nil && test.at < 0:
		case err == nil:
			t.Errorf("%s: no fault, want one at %d", test.text, test.at)
		case !errors.As(err, &faults) || len(faults) != 1 || faults[0].Offset != test.at || !strings.Contains(err.Error(), "encrypted"):
			t.Errorf("%s: %v, want one at %d", test.text, err, test.at)
		}
	}
}
