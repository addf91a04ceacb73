package trace

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestMaskReplacesFieldsAndErrors(t *testing.T) {
	event := `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"x","price":2}],"name":null}}`
	for _, test := range []struct {
		mask []string
		want string
	}{
		{nil, event},
		{[]string{"data.email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"data.items.sku"}, `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"***","price":2}],"name":null}}`},
		{[]string{"items"}, `{"id":"u-1","data":{"email":"a@b","items":"***","name":null}}`},
		{[]string{"*"}, `{"id":"***","data":{"email":"***","items":[{"sku":"***","price":"***"}],"name":"***"}}`},
	} {
		l := Line{Key: "u-1", Event: json.RawMessage(event), Error: "a@b is bad"}
		l.Mask(test.mask)
		if string(l.Event) != test.want {
			t.Errorf("%v: %s\nwant %s", test.mask, l.Event, test.want)
		}
		if (l.Error == Masked) != (test.mask != nil) {
			t.Errorf("%v: the error is %q", test.mask, l.Error)
		}
	}
}

func TestChangesNamesEachDifferentField(t *testing.T) {
	before, after := json.RawMessage(`{"a":1,"b":{"c":[1],"d":2},"e":null}`), json.RawMessage(`{"b":{"c":[1,2],"d":2,"f":"x"},"a":1}`)
	want := []string{"b.c: [1] -> [1,2]", `b.f: nothing -> "x"`, "e: null -> nothing"}
	if got := Changes(before, after); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := Changes(json.RawMessage("{"), after); got != nil {
		t.Errorf("got %q for invalid JSON, want nil", got)
	}
}
