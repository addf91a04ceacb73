package codec

import "testing"

// That the quick walk agrees with the walker is among the laws of TestWalkLaws,
// for Validate has no quick one. This is that it is worth having.
func TestOrdinaryEventsNeedNoWalker(t *testing.T) {
	s := shopSchema(t, "OrderCreated")
	body, err := EncodeJSON(s, decodeJSON(t, orderJSON))
	if err != nil {
		t.Fatal(err)
	}
	layout, err := NewLayout(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	pos := 0
	for i := range layout.steps {
		st := &layout.steps[i]
		if pos = st.quick.walk(body, pos); pos < 0 {
			t.Fatalf("%s is left to the walker", st.path)
		}
	}
	if pos != len(body) {
		t.Errorf("%d of %d bytes", pos, len(body))
	}
	for cut := range body {
		pos := 0
		for i := 0; i < len(layout.steps) && pos >= 0; i++ {
			pos = layout.steps[i].quick.walk(body[:cut], pos)
		}
		if pos >= 0 {
			t.Errorf("it is sure of the first %d bytes", cut)
		}
	}
}
