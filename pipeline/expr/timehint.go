package expr

// timeHint returns a hint for an operator that mixes a time or a duration with a number,
// or "".
func timeHint(a, b string) string {
	isTime := func(word string) bool { return word == "timestamp" || word == "duration" }
	isNumber := func(word string) bool { return word == "int" || word == "double" }
	if isTime(a) && isNumber(b) || isNumber(a) && isTime(b) {
		return "write a duration as duration('1h'), and a time as timestamp('2026-01-31T12:00:00Z')"
	}
	return ""
}
