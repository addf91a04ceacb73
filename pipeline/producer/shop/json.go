package shop

import (
	"strconv"
	"time"
)

// AppendJSON appends the event to dst in the form of encoding/json with SetEscapeHTML(false).
// It supports only events of a [Story], whose texts need no escapes.
func (e *Event) AppendJSON(dst []byte) []byte {
	dst = appendText(append(dst, `{"id":`...), e.ID)
	dst = appendText(append(dst, `,"type":`...), e.Type)
	dst = append(dst, `,"timestamp":"`...)
	dst = e.Timestamp.AppendFormat(dst, time.RFC3339Nano)
	dst = strconv.AppendInt(append(dst, `","version":`...), int64(e.Version), 10)
	dst = appendText(append(dst, `,"metadata":{"source":`...), e.Metadata["source"])
	dst = append(dst, `},"data":{"id":`...)
	switch data := e.Data.(type) {
	case User:
		dst = appendText(dst, data.ID)
		if data.Email != "" {
			dst = appendText(append(dst, `,"email":`...), data.Email)
		}
		if data.Name != "" {
			dst = appendText(append(dst, `,"name":`...), data.Name)
		}
	case Order:
		dst = appendText(dst, data.ID)
		dst = appendText(append(dst, `,"user_id":`...), data.UserID)
		dst = append(dst, `,"items":[`...)
		for i, item := range data.Items {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendText(append(dst, `{"product_id":`...), item.ProductID)
			dst = strconv.AppendInt(append(dst, `,"quantity":`...), int64(item.Quantity), 10)
			dst = appendDollars(append(dst, `,"price":`...), item.Price)
			dst = append(dst, '}')
		}
		dst = appendDollars(append(dst, `],"total_amount":`...), data.TotalAmount)
	case OrderID:
		dst = appendText(dst, data.ID)
	}
	return append(dst, "}}"...)
}

func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

func appendDollars(dst []byte, amount float64) []byte {
	return strconv.AppendFloat(dst, amount, 'f', -1, 64)
}
