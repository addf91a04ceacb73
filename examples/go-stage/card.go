package main

import (
	"context"
	"errors"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/stage"
)

// reasonCard is the dead-letter reason of events with an invalid card number.
const reasonCard pipeline.Reason = "card"

// card checks the number of a payment card and sets the card's network. Its arguments, in
// the parameter "with" of the topology, are the paths of the two fields.
var card = stage.Func{
	Name: "card",
	Doc:  "Checks the Luhn digit of a card number (field number), and sets the card's network (field network).",
	New: func(f *stage.Fields, with map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		if with["number"] == "" || with["network"] == "" {
			return nil, 0, errors.New("with needs number and network, the paths of two fields")
		}
		number, out := stage.Read[[]byte](f, with["number"]), stage.Write[string](f, with["network"])
		process := func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
			digits, ok := number.Get(e)
			if !ok || !luhn(digits) {
				// The error must not contain the number: dead letters keep the error in a header.
				return pipeline.Drop, pipeline.Reject(reasonCard, "%s is not a valid card number", with["number"])
			}
			return pipeline.Pass, out.Set(e, network(string(digits)))
		}
		// The result depends only on the event.
		return process, stage.Deterministic, nil
	},
}

// luhn reports whether digits are 12 to 19 decimal digits whose last one is the check digit
// of the others (ISO/IEC 7812-1, annex B).
func luhn(digits []byte) bool {
	if len(digits) < 12 || len(digits) > 19 {
		return false
	}
	sum := 0
	for i, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
		n := int(c - '0')
		if (len(digits)-i)%2 == 0 { // every second digit, from the right
			n *= 2
		}
		sum += n/10 + n%10
	}
	return sum%10 == 0
}

// network returns the network that issues numbers with these first digits.
func network(number string) string {
	switch {
	case strings.HasPrefix(number, "4"):
		return "visa"
	case number >= "51" && number < "56", number >= "2221" && number < "2721":
		return "mastercard"
	case strings.HasPrefix(number, "34"), strings.HasPrefix(number, "37"):
		return "amex"
	}
	return "other"
}
