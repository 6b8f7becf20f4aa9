"""How others store pictures, text and masks: COCO, LLaVA, chat messages, referring expressions."""
