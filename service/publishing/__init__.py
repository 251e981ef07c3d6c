"""Results told as they come: to an MQTT broker, and to webhooks."""
