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

// The texts of a map are looked at all at once, with their lengths between them,
// and yet each has to be whole by itself.
func TestTextsOfAMapAreUTF8EachByItself(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts []string // keys and values in turn
		sure  bool
	}{
		{"ASCII", []string{"channel", "web", "region", "eu"}, true},
		{"none", nil, true},
		{"empty texts", []string{"", ""}, true},
		{"a value of two bytes a letter", []string{"channel", "web", "city", "Åäö"}, true},
		{"a key of three", []string{"都市", "京都", "a", "b"}, true},
		{"half a letter at the end of a key", []string{"a\xc3", "b"}, false},
		{"a letter cut in two by a length", []string{"a\xc3", "\xa4b"}, false},
		{"one bad text after good ones", []string{"Å", "ä", "ö", "\xff"}, false},
	} {
		body := AppendLong(nil, int64(len(test.texts)/2))
		for _, text := range test.texts {
			body = AppendBytes(body, []byte(text))
		}
		if len(test.texts) > 0 {
			body = append(body, 0)
		}
		want := -1
		if test.sure {
			want = len(body)
		}
		if got := texts(body, 0); got != want {
			t.Errorf("%s: walked to %d, want %d", test.name, got, want)
		}
	}
}
